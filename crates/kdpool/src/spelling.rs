//! The command line as kd spells it, turned into what clap knows.
//!
//! | typed | taken as |
//! |---|---|
//! | `-bonc` `-cf` `-logo` `-quiet` | two dashes: clap has no long names after one |
//! | `-b` `-n` `-kqm` `-?` | `--bonc` `--noisy` `--quiet` `--help` |
//! | `/k` `-K` | `-k` |
//! | `–k` `—bonc` | what a word processor made of `-k` and `--bonc` |

use std::ffi::OsString;

/// Options with one dash and more than one letter that are clap's long ones.
const LONG: [&str; 9] = ["bonc", "cf", "loga", "logo", "quiet", "noisy", "yes", "help", "version"];

/// kd's options that have another name here.
const RENAMED: [(&str, &str); 4] = [("b", "--bonc"), ("n", "--noisy"), ("kqm", "--quiet"), ("?", "--help")];

/// kd's options of one letter that are the same here.
const SHORT: [&str; 4] = ["k", "y", "c", "v"];

/// kd's options that are not here, and what does it instead.
const ELSEWHERE: [(&str, &str); 22] = [
    ("d", "breaks in when the first module is loaded; -bonc breaks in as soon as the target is reached"),
    ("x", "stops at exceptions; every one that the target reports stops it here"),
    ("z", "opens a crash dump; kdpool works on live targets, and kdpool report FILE reads its own marks and reports"),
    ("kl", "debugs the machine itself; kdpool debugs another one: -k names it, and kdpool demo has one to try"),
    ("kx", "is for EXDI probes; -k net:... and -k com:... are there"),
    ("i", "is where images are looked for; -y finds them as well"),
    ("ee", "chooses how expressions are read; ? reads MASM's and ?? C++'s"),
    ("cfr", "runs a script after every restart; -cf runs it once"),
    ("logau", "writes a log in UTF-16; -loga appends to one in UTF-8"),
    ("logou", "writes a log in UTF-16; -logo writes one in UTF-8"),
    ("noshell", "forbids .shell, which is not there; leave it out"),
    ("secure", "forbids what reaches the debugger's machine; nothing here does, leave it out"),
    ("myob", "is about a library of kd; -quiet leaves out its banner"),
    ("server", "makes a debugging server; kdpool has none, use ssh"),
    ("remote", "is a client of a debugging server; kdpool has none, use ssh"),
    ("s", "keeps symbols from being loaded at once; they are loaded when they are needed"),
    ("r", "shows registers at every stop; type r"),
    ("m", "makes the line a modem; it is not supported"),
    ("p", "attaches to a process; kdpool debugs kernels"),
    ("pn", "attaches to a process; kdpool debugs kernels"),
    ("g", "ignores the first breakpoint of a process; kdpool debugs kernels"),
    ("o", "debugs processes; kdpool debugs kernels"),
];

/// Options whose next argument is a value, whatever it looks like.
const WITH_VALUE: [&str; 11] = [
    "-y",
    "-c",
    "--cf",
    "--loga",
    "--logo",
    "--pooltag",
    "--format",
    "--trace-file",
    "--capture",
    "--connect-timeout",
    "--tag",
];

/// The arguments in clap's spelling; an error is a line about one that is not here.
pub(crate) fn from_kd(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut taken: Vec<OsString> = Vec::new();
    // A subcommand's options are its own.
    let (mut is_value, mut is_sub) = (true, false);
    for argument in arguments {
        if std::mem::replace(&mut is_value, false) {
            taken.push(argument);
            continue;
        }
        let Some(text) = argument.to_str() else {
            taken.push(argument);
            continue;
        };
        let text = ascii_dashes(text);
        let option = option(&text, is_sub)?;
        is_sub |= taken.len() == 1 && !text.starts_with(['-', '/']);
        is_value = WITH_VALUE.contains(&option.as_str());
        taken.push(option.into());
    }
    Ok(taken)
}

/// Word processors turn a hyphen into a dash, and two into a longer one.
fn ascii_dashes(text: &str) -> String {
    for (dash, hyphens) in [('\u{2013}', "-"), ('\u{2212}', "-"), ('\u{2010}', "-"), ('\u{2014}', "--")] {
        if let Some(rest) = text.strip_prefix(dash) {
            return format!("{hyphens}{rest}");
        }
    }
    text.to_owned()
}

fn option(text: &str, is_sub: bool) -> Result<String, String> {
    let (mark, name) = match text.as_bytes().first() {
        Some(b'-') if !text.starts_with("--") => ('-', &text[1..]),
        // A path on this system may begin with it.
        Some(b'/') if !is_sub => ('/', &text[1..]),
        _ => return Ok(text.to_owned()),
    };
    let lower = name.to_ascii_lowercase();
    if LONG.contains(&lower.as_str()) {
        return Ok(format!("--{lower}"));
    }
    if is_sub {
        return Ok(if name == "?" { "--help".into() } else { text.to_owned() });
    }
    if let Some((_, ours)) = RENAMED.iter().find(|(theirs, _)| *theirs == lower) {
        return Ok((*ours).to_owned());
    }
    if SHORT.contains(&lower.as_str()) {
        return Ok(format!("-{lower}"));
    }
    match ELSEWHERE.iter().find(|(theirs, _)| *theirs == lower) {
        Some((theirs, why)) => Err(format!("kd's {mark}{theirs} {why}")),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(arguments: &[&str]) -> Result<Vec<String>, String> {
        let arguments = ["kdpool"].iter().chain(arguments).map(OsString::from);
        Ok(from_kd(arguments)?.into_iter().skip(1).map(|argument| argument.into_string().unwrap()).collect())
    }

    #[test]
    fn kds_spelling_is_taken() {
        for (typed, meant) in [
            (&["-bonc", "-b"][..], &["--bonc", "--bonc"][..]),
            (&["-K", "com:port=x", "/k", "/Y"], &["-k", "com:port=x", "-k", "-y"]),
            (&["-n", "-kqm", "-quiet", "-?", "/?"], &["--noisy", "--quiet", "--quiet", "--help", "--help"]),
            (&["\u{2013}k", "net:x", "\u{2014}bonc", "\u{2212}v"], &["-k", "net:x", "--bonc", "-v"]),
            (&["-CF", "x", "-logO", "y"], &["--cf", "x", "--logo", "y"]),
            (&["-v", "-V", "--help", "-h"], &["-v", "-v", "--help", "-h"]),
        ] {
            assert_eq!(taken(typed).unwrap(), meant, "{typed:?}");
        }
    }

    #[test]
    fn a_value_is_taken_as_it_is() {
        assert_eq!(taken(&["-c", "-bonc", "-b"]).unwrap(), ["-c", "-bonc", "--bonc"]);
        assert_eq!(taken(&["-y", "/k", "-c", "\u{2013}x"]).unwrap(), ["-y", "/k", "-c", "\u{2013}x"]);
        // Nor is what belongs to a subcommand.
        assert_eq!(taken(&["report", "/k", "-d", "-y", "-x"]).unwrap(), ["report", "/k", "-d", "-y", "-x"]);
        assert_eq!(taken(&["/no/such/path"]).unwrap(), ["/no/such/path"]);
    }

    #[test]
    fn what_is_not_here_names_what_does_it() {
        for (typed, part) in
            [("-z", "kdpool report"), ("-d", "-bonc"), ("/kl", "kdpool demo"), ("-KL", "-k names it"), ("-ee", "??")]
        {
            let why = taken(&[typed]).unwrap_err();
            assert!(why.contains(part) && !why.contains('\n'), "{typed}: {why}");
        }
    }
}
