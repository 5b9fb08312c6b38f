//! Files that hold something of a target: names, addresses, stacks, what was typed. Nobody but their owner reads them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Opens a file for writing, and makes it with the user's rights alone when it is not there. One that is there keeps its
/// rights: somebody may have opened it up on purpose.
pub fn open_private(path: &Path, append: bool) -> io::Result<File> {
    open(OpenOptions::new().write(true).append(append).truncate(!append), path)
}

/// As [`open_private`], for reading and writing what is there.
pub fn open_private_as_it_is(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true).write(true), path)
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Elsewhere a user's folders are his own by what they inherit.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.create(true).open(path)
}

/// Writes a whole file, with the rights that [`open_private`] gives it. Whoever kills the program meanwhile finds the old
/// one or the new one, and at worst a part beside it whose name begins with a dot.
pub fn write_private(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    // A link stays one, and what it leads to is replaced.
    let there = fs::canonicalize(path).ok();
    let path = there.as_deref().unwrap_or(path);
    let old = fs::metadata(path).ok();
    // A pipe or a device is written to, not replaced.
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return open_private(path, false)?.write_all(bytes.as_ref());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let part = tempfile::Builder::new().prefix(&name).suffix(".part").tempfile_in(folder);
    let mut part = match part {
        // The file may be the user's, and its folder not.
        Err(error) if old.is_some() && error.kind() == io::ErrorKind::PermissionDenied => {
            return open_private(path, false)?.write_all(bytes.as_ref());
        }
        part => part?,
    };
    part.write_all(bytes.as_ref())?;
    if let Some(old) = old {
        part.as_file().set_permissions(old.permissions())?;
    }
    // It has its name when its bytes are on the disk: a power cut leaves one of both, too.
    part.as_file().sync_all()?;
    part.persist(path).map_err(|error| error.error)?;
    Ok(())
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

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("file"), root.path().join("link"));
        write_private(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_private(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        write_private(Path::new("/dev/null"), "nothing").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
