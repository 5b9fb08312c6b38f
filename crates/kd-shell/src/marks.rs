//! The marks of the pool that a session has taken.

use std::collections::BTreeMap;

use nt_leaks::{Harvest, Mark};

/// By name.
pub(crate) type Marks = BTreeMap<String, Held>;

/// A mark and what the log showed since, as long as the session lasts.
pub(crate) struct Held {
    pub(crate) mark: Mark,
    pub(crate) harvest: Option<Harvest>,
}

impl Held {
    pub(crate) fn new(mark: Mark) -> Self {
        let harvest = mark.log.clone().map(Harvest::new);
        Held { mark, harvest }
    }
}
