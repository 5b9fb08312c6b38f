//! The same kernels with the names and types of real ones, from `../shared/isf`: what the other tests write by hand at
//! the facts' offsets must come out through the real types.

use std::path::PathBuf;

use nt_symbols::Isf;

use crate::support::*;

/// The kernels of shared/isf/README.md.
const KERNELS: [(&str, u16); 8] = [
    ("339E74133576439CBCDF7E0229DA3773-1", 7601),
    ("E94865C581EC4D45820E8D5CA952D15D-1", 9600),
    ("74A8630BA8B84B1B972E72CF98536F2C-1", 14393),
    ("E687C28CF66402E5C3EC92A57C064C71-1", 17763),
    ("E0093F3AEF15D58168B753C9488A4043-1", 18362),
    ("3789767E34B7A48A3FC80CE12DE18E65-1", 19041),
    ("BA02CB8F36DB1DACC5DB9F1ED97AAC96-1", 20348),
    ("C224C641D4E1FDFA0EEA8DB742B93EF8-1", 22000),
];

#[test]
fn real_types_decode_what_the_facts_describe() {
    let shared = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    if !shared.join("isf").is_dir() {
        println!("skipped: {} is not there", shared.join("isf").display());
        return;
    }
    for (name, build) in KERNELS {
        let path = shared.join("isf").join(format!("{name}.json.xz"));
        let isf: &'static Isf = Box::leak(Box::new(Isf::open(&path).unwrap()));
        let version = Version { pointer: 8, build, real: Some(Real(isf)) };
        crate::tags::check_ordinary(version);
        crate::big_pages::check_ordinary(version);
        crate::pool_log::check_ordinary(version);
        crate::verifier::check_ordinary(version);
        if build >= 17763 {
            crate::segment_heap::check_ordinary(version);
        }
    }
}
