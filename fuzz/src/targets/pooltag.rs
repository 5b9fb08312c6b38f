//! Bytes as pooltag.txt.

use nt_pool::Tag;
use nt_pool::pooltag::PoolTags;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(tags) = PoolTags::parse(data) else { return };
    let known: Vec<Tag> = tags.tags().collect();
    assert!(known.len() <= data.len());
    for tag in known.into_iter().take(16).chain([Tag(*b"Leak"), Tag(*b"\0\0\0\0")]) {
        let _ = (tags.describe(tag).is_some(), tags.poolused(tag), tags.pool(tag));
    }
    let _ = tags.unread();
}
