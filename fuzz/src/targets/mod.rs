//! One module for each target.

use crate::Target;

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// All of them.
        pub const ALL: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),*];
    };
}

targets! {
    big_pages,
    cabinet,
    capture,
    command_line,
    connection,
    deframer,
    dissect,
    image,
    image_file,
    isf,
    kdnet,
    messages,
    pdb,
    pool_machine,
    pool_page,
    pooltag,
    saved,
    script,
    self_check,
    session,
    stream,
    symbol_path,
    unwind,
    verifier_log,
}
