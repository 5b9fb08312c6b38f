//! A pool question that kdpool does not have: what do the blocks of a tag begin with? Blocks that leak are often objects of
//! one kind, and begin alike.
//!
//! `cargo run -p kdpool-examples --bin own_question -- net:port=50000,key=1.2.3.4 'srv*' Leak`
//!
//! It shows what a question of one's own is made of: `Kernel` for memory and names, the questions that are there already,
//! and `Notes` for what is missing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use kdpool_examples::{Attached, Failure, words};
use nt_pool::find::{Bounds, Question, Quote, Silent};
use nt_pool::{Kernel, Lack, Missing, Notes, PoolError, Tag, TagPattern};

/// Bytes that are compared.
const HEAD: usize = 16;

/// The answer.
struct Beginnings {
    /// How many blocks begin so, most first.
    heads: Vec<([u8; HEAD], usize)>,
    /// What could not be read.
    notes: Notes,
}

/// The question. An error means that it has no answer at all; what is missing in the answer is in its notes.
fn beginnings(kernel: &Kernel<'_>, tag: Tag) -> Result<Beginnings, PoolError> {
    let question = Question::new(tag);
    let found = Quote::new(kernel, question, kernel.memory.spent())?.run(kernel, Bounds::default(), &mut Silent)?;
    let mut notes = found.notes;
    let mut counts = BTreeMap::new();
    let mut unread = Vec::new();
    for block in &found.blocks {
        let mut head = [0; HEAD];
        // How far memory is readable; an error is the end of the connection, or Ctrl+C.
        let read = kernel.memory.read(block.address(), &mut head)?;
        if read < HEAD {
            unread.push(block.address());
        } else {
            *counts.entry(head).or_insert(0) += 1;
        }
    }
    if let Some(first) = unread.first() {
        let what = format!("{} blocks are paged out, the first at {first:016x}", unread.len());
        notes.missing(Missing::because(Lack::PagedOut, what).at(*first).count(unread.len() as u64));
    }
    let mut heads: Vec<_> = counts.into_iter().collect();
    heads.sort_by_key(|(_, count)| Reverse(*count));
    Ok(Beginnings { heads, notes })
}

fn main() -> Result<(), Failure> {
    let [connection, symbol_path, tag] = words("own_question CONNECTION SYMBOL_PATH TAG")?;
    let tag = tag.parse::<TagPattern>()?.exact().ok_or("a tag without wildcards is needed")?;
    let attached = Attached::new(&connection, &symbol_path)?;
    let answer = beginnings(&attached.kernel(), tag)?;
    drop(attached);
    for (head, count) in answer.heads {
        let bytes: Vec<String> = head.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{count:>6}  {}", bytes.join(" "));
    }
    for note in answer.notes.lines() {
        println!("note: {note}");
    }
    Ok(())
}
