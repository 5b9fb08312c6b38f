//! A KDNET key as Microsoft's kdnet makes it: four random 64-bit numbers in base 36.

use anyhow::Context as _;

pub(super) fn new() -> anyhow::Result<String> {
    let mut parts = Vec::with_capacity(4);
    for _ in 0..4 {
        parts.push(base36(getrandom::u64().context("the system gives no random numbers")?));
    }
    Ok(parts.join("."))
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base36_as_kdnet_writes_it() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
        assert_eq!(base36(u64::MAX), "3w5e11264sgsf");
    }

    #[test]
    fn keys_are_new_each_time_and_parse() {
        let key = new().unwrap();
        assert_ne!(key, new().unwrap());
        assert!(kd_link::KeyText::parse(&key).is_ok(), "{key}");
        assert!(key.parse::<kd_wire::kdnet::Key>().is_ok(), "{key}");
    }
}
