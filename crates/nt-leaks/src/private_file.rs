//! Files that hold something of a target: names, addresses, stacks, what was typed. Nobody but their owner reads them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Opens a file for writing, and makes it with the user's rights alone when it is not there. One that is there keeps its
/// rights: somebody may have opened it up on purpose.
pub fn open_private(path: &Path, append: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).append(append).truncate(!append);
    // Elsewhere a user's folders are his own by what they inherit.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes a whole file, as [`open_private`] opens it.
pub fn write_private(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    open_private(path, false)?.write_all(bytes.as_ref())
}

/// Makes a folder, with those above it, for the user alone. One that is there keeps its rights.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn rights(path: &Path) -> u32 {
        std::fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o777)
    }

    #[test]
    fn only_the_user_reads_what_is_made_here() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        create_private_folder(&folder).unwrap();
        assert_eq!((rights(&folder), rights(folder.parent().unwrap())), (0o700, 0o700));
        let file = folder.join("log");
        write_private(&file, "first\n").unwrap();
        open_private(&file, true).unwrap().write_all(b"second\n").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"first\nsecond\n");
        assert_eq!(rights(&file), 0o600);
    }

    #[test]
    fn a_file_that_is_there_keeps_its_rights() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("shared");
        std::fs::write(&file, "old and long").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        write_private(&file, "new").unwrap();
        assert_eq!((rights(&file), std::fs::read(&file).unwrap()), (0o640, b"new".to_vec()));
    }
}
