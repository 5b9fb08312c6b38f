//! Files that are needed as a whole.

use std::io::{self, Read};

use crate::room_for;

/// What is read at a time, and taken at first.
const PART: usize = 64 << 10;

/// All that `input` has, if that is no more than `most` bytes and there is room for it. A file's length says little: a
/// device or a pipe has none.
///
/// # Errors
///
/// What reading came to; [`io::ErrorKind::FileTooLarge`]; [`io::ErrorKind::OutOfMemory`] with a [`Full`](crate::Full).
pub fn read_whole(mut input: impl Read, most: usize) -> io::Result<Vec<u8>> {
    let (mut bytes, mut part) = (Vec::new(), vec![0; PART]);
    loop {
        let read = match input.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.len() + read > most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
        }
        if bytes.capacity() - bytes.len() < read {
            let more = bytes.capacity().max(PART);
            room_for(more)?;
            bytes.reserve_exact(more);
        }
        bytes.extend_from_slice(&part[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_refused_and_what_ends_in_time_is_whole() {
        let error = read_whole(io::repeat(7), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(error.to_string(), "it has more than 1048576 bytes");
        let bytes = vec![3; (1 << 20) - 5];
        assert_eq!(read_whole(&bytes[..], bytes.len()).unwrap(), bytes);
        assert_eq!(read_whole(&[][..], 0).unwrap(), []);
    }
}
