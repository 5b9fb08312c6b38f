//! A whole question about a tag: what it will cost, how it is stopped, and how it goes on.

use std::cell::Cell;
use std::time::Duration;

use nt_memory::{Fault, Layer, Memory, Search, Spent, Through};
use nt_pool::find::{Bounds, Place, Question, Quote, Searched, Silent, Sizes};
use nt_pool::{Kernel, Lack, Tag};

use crate::classic_pool::ordinary;
use crate::support::{Kept, WIN7_X64};

/// Memory that is read so many times before the user presses Ctrl+C.
struct Patience<'m>(&'m dyn Memory, Cell<u32>);

impl Patience<'_> {
    fn wait(&self) -> Result<(), Fault> {
        self.1.set(self.1.get().checked_sub(1).ok_or(Fault::Cancelled)?);
        Ok(())
    }
}

impl Layer for Patience<'_> {
    fn below(&self) -> &dyn Memory {
        self.0
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.wait()?;
        self.0.read(address, buffer)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.wait()?;
        self.0.reread(address, buffer)
    }

    fn search(&self, _: u64, _: u64, _: &[u8]) -> Result<Search, Fault> {
        Ok(Search::Unsupported)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.wait()?;
        self.0.read_physical(address, buffer)
    }

    fn unread(&self, address: u64, length: u64) -> u64 {
        self.0.unread(address, length)
    }
}

fn question() -> Question {
    Question { sizes: Sizes::Small, global: true, ..Question::new(Tag(*b"Leak")) }
}

/// The estimate is of what is left, also within a run of pages.
#[test]
fn a_search_from_an_address_covers_what_lies_above() {
    let pool = ordinary(WIN7_X64);
    let kernel = pool.world.kernel();
    let quote = |from| Quote::new(&kernel, Question { from, free: true, ..question() }, Spent::default()).unwrap();
    let all = quote(0);
    let (last, paged) = (pool.nonpaged + 0x2000, pool.paged);
    let fewer = quote(last);
    // Paged pool lies below nonpaged pool here; of that, two pages of three lie below as well.
    let above = |from: u64| pool.blocks.iter().map(|block| block.header & !0xfff).filter(move |page| *page >= from);
    let pages = |from| above(from).collect::<std::collections::BTreeSet<_>>().len() as u64;
    assert!(paged < last && fewer.covers < all.covers);
    assert_eq!(all.covers - fewer.covers, (pages(0) - pages(last)) * 0x1000);
    let found = fewer.run(&kernel, Bounds::default(), &mut Silent).unwrap();
    assert!(!found.blocks.is_empty() && found.blocks.iter().all(|block| block.address() >= last));
    assert_eq!(found.searched, Searched::Small);
}

/// What was read before costs nothing, and so a search of it is not said to take time, however long it thought.
#[test]
fn what_is_kept_is_not_in_the_estimate() {
    let pool = ordinary(WIN7_X64);
    let kernel = pool.world.kernel();
    let kept = Through(Kept(kernel.memory));
    let all = Question { bulk: true, ..question() };
    let expected = |kernel: &Kernel<'_>| Quote::new(kernel, all.clone(), Spent::default()).unwrap().expected.unwrap();
    assert!(expected(&kernel).requests > 5);
    let expected = expected(&Kernel { memory: &kept, ..kernel });
    assert_eq!((expected.requests, expected.bytes, expected.time), (0, 0, Duration::ZERO));
}

/// However early the user ends it, it says so, what it has found is an answer, and the rest can be had later.
#[test]
fn what_is_interrupted_says_so_and_goes_on() {
    let pool = ordinary(WIN7_X64);
    let kernel = pool.world.kernel();
    let all = Quote::new(&kernel, question(), Spent::default()).unwrap();
    let all = all.run(&kernel, Bounds::default(), &mut Silent).unwrap().blocks;
    let mut stops = 0;
    for patience in 0..400 {
        let memory = Through(Patience(kernel.memory, Cell::new(patience)));
        let hurried = Kernel { memory: &memory, ..kernel };
        let found = Quote::new(&hurried, question(), Spent::default())
            .and_then(|quote| quote.run(&hurried, Bounds::default(), &mut Silent));
        let found = match found {
            Ok(found) => found,
            // Before it was known where anything lies.
            Err(error) => {
                assert_eq!(error.to_string(), "interrupted", "after {patience} reads");
                continue;
            }
        };
        let Some(place) = found.stopped else {
            // Then the lists of freed blocks were not followed, which is said as well.
            if !found.notes.is_complete() && found.blocks.len() > all.len() {
                assert!(found.notes.lines().iter().any(|line| line.contains("look allocated")));
                continue;
            }
            assert_eq!(found.blocks, all);
            break;
        };
        stops += 1;
        let why: Vec<Lack> = found.notes.all_missing().map(|missing| missing.why).collect();
        assert!(why.contains(&Lack::Stopped) && found.notes.lines().contains(&"interrupted".to_owned()));
        let rest = Question { resumed: Some(Place { session: None, address: place.address }), ..question() };
        let rest = Quote::new(&kernel, rest, Spent::default()).unwrap();
        let rest = rest.run(&kernel, Bounds::default(), &mut Silent).unwrap();
        // What waits in a list of freed blocks is told by the rest only where the lists were not followed before.
        let together: std::collections::BTreeSet<u64> =
            found.blocks.iter().chain(&rest.blocks).map(|block| block.address()).collect();
        assert!(all.iter().all(|block| together.contains(&block.address())), "after {patience} reads");
    }
    assert!(stops > 5, "{stops}");
}
