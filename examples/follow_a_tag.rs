//! Follows one tag while the machine runs, and posts to a webhook whenever it has grown.
//!
//! `cargo run -p kdpool-examples --bin follow_a_tag -- net:port=50000,key=1.2.3.4 'srv*' Leak http://host/hook 30 10`
//! looks ten times, every 30 seconds. A look costs a few requests, and the target some milliseconds.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kdpool_examples::{Attached, Failure, words};
use nt_pool::{Tag, TagPattern, tags};
use serde_json::{Value, json};

fn main() -> Result<(), Failure> {
    let [connection, symbol_path, tag, url, seconds, times] =
        words("follow_a_tag CONNECTION SYMBOL_PATH TAG URL SECONDS TIMES")?;
    let tag = tag.parse::<TagPattern>()?.exact().ok_or("a tag without wildcards is needed")?;
    let (every, times) = (Duration::from_secs(seconds.parse()?), times.parse::<u32>()?);

    // A slow web server must not hold the target: another thread talks to it.
    let (news, waiting) = mpsc::channel::<Value>();
    let poster = thread::spawn(move || waiting.iter().for_each(|grown| post(&url, &grown)));

    let mut attached = Attached::new(&connection, &symbol_path)?;
    let mut before = bytes(&attached, tag)?;
    for look in 1..=times {
        attached = attached.run_for(every)?;
        let now = bytes(&attached, tag)?;
        println!("look {look}: {now} bytes");
        if now > before {
            news.send(json!({ "tag": tag.to_string(), "look": look, "bytes": now, "grown": now - before }))?;
        }
        before = now;
    }
    drop(attached);
    drop(news);
    poster.join().map_err(|_| "the posting thread panicked")?;
    Ok(())
}

/// What the kernel counts as outstanding, from the tag's own rows.
fn bytes(attached: &Attached, tag: Tag) -> Result<u64, Failure> {
    let report = tags::read_one(&attached.kernel(), tag)?;
    Ok(report.tags.iter().map(|usage| usage.paged.bytes.saturating_add(usage.nonpaged.bytes)).sum())
}

/// A hook that fails is no reason to stop following.
fn post(url: &str, grown: &Value) {
    let posted = ureq::post(url).header("content-type", "application/json").send(grown.to_string());
    if let Err(error) = posted {
        eprintln!("{url}: {error}");
    }
}
