//! The ten tags that hold the most pool, as JSON.
//!
//! `cargo run -p kdpool-examples --bin biggest_tags -- net:port=50000,key=1.2.3.4 'srv*'`

use std::cmp::Reverse;

use kdpool_examples::{Attached, Failure, words};
use nt_pool::tags;
use serde_json::json;

fn main() -> Result<(), Failure> {
    let [connection, symbol_path] = words("biggest_tags CONNECTION SYMBOL_PATH")?;
    let attached = Attached::new(&connection, &symbol_path)?;
    let mut report = tags::read(&attached.kernel(), &|_| true)?;
    let cost = attached.target.cost();
    // The target runs again while this is printed.
    drop(attached);

    report.tags.sort_by_key(|usage| Reverse(usage.paged.bytes.saturating_add(usage.nonpaged.bytes)));
    let tags = report.tags.iter().take(10).map(|usage| {
        json!({
            "tag": usage.tag.to_string(),
            "paged": { "allocations": usage.paged.diff, "bytes": usage.paged.bytes },
            "nonpaged": { "allocations": usage.nonpaged.diff, "bytes": usage.nonpaged.bytes },
        })
    });
    let answer = json!({
        "tags": tags.collect::<Vec<_>>(),
        // What could not be read is said, not left out.
        "complete": report.notes.is_complete(),
        "notes": report.notes.lines(),
        "requests": cost.requests,
        "frozen_ms": cost.frozen.as_millis() as u64,
    });
    println!("{answer:#}");
    Ok(())
}
