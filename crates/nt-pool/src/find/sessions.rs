//! The sessions' own pools.

use super::run::Observer;
use super::{Place, Pool, Quote, Sizes};
use crate::big_pages::BigPage;
use crate::sessions::{self, Session};
use crate::small_blocks::{Limits, SmallBlock};
use crate::{Kernel, Lack, Missing, PoolError};

/// What the sessions' pools have.
#[derive(Debug, Default)]
pub(super) struct InSessions {
    pub(super) sessions: Vec<Session>,
    /// With the session's number.
    pub(super) large: Vec<(u32, BigPage)>,
    /// With the session's place in the list.
    pub(super) small: Vec<(usize, SmallBlock)>,
    /// Bytes of pool that were read.
    read: u64,
    /// Small blocks of some session were looked for.
    walked: bool,
}

impl Quote {
    /// Goes from session to session; what was read before counts against the limits.
    pub(super) fn search_sessions(
        &mut self,
        kernel: &Kernel<'_>,
        limits: Limits,
        observer: &mut dyn Observer,
    ) -> Result<InSessions, PoolError> {
        let mut found = InSessions::default();
        let resumed = self.question.resumed_session();
        let (id, address) = resumed.unwrap_or_default();
        let start = Place { session: Some(id), address };
        let sessions = self.found.piece("sessions' pools are missing", start, sessions::all(kernel))?;
        let Some(sessions) = sessions else { return Ok(found) };
        self.found.notes.extend(sessions.notes);
        // Where nothing else was asked for, no session is an answer.
        self.found.answered |= self.question.pool == Some(Pool::Session);
        found.sessions = sessions.sessions;
        for index in 0..found.sessions.len() {
            let session = found.sessions[index].clone();
            let from = match resumed {
                Some((id, address)) if id == session.id => address,
                Some((id, _)) if id > session.id => continue,
                _ => 0,
            };
            observer.session(session.id);
            let left = Limits {
                bytes: limits.bytes.saturating_sub(found.read),
                blocks: limits.blocks.saturating_sub(found.small.len()),
                from,
            };
            self.search_session(kernel, index, &session, left, &mut found)?;
            if self.found.stopped.is_some() {
                break;
            }
        }
        Ok(found)
    }

    fn search_session(
        &mut self,
        kernel: &Kernel<'_>,
        index: usize,
        session: &Session,
        left: Limits,
        found: &mut InSessions,
    ) -> Result<(), PoolError> {
        let place = Place { session: Some(session.id), address: left.from };
        let only_large = self.question.sizes == Sizes::Large;
        let resumed = self.question.resumed.is_some();
        // However small the limit is, a walk that is taken up again and again comes to its end.
        if !only_large && (left.bytes == 0 || left.blocks == 0) && (found.walked || !resumed) {
            let what = format!("a limit stopped the search before session {}", session.id);
            self.found.notes.missing(Missing::because(Lack::Stopped, what));
            self.found.stopped = Some(place);
            return Ok(());
        }
        let what = format!("session {}", session.id);
        let pages = self.found.piece(&what, place, sessions::big_pages(kernel, session, &|_| true))?;
        self.found.answered |= pages.is_some();
        if self.found.stopped.is_some() {
            return Ok(());
        }
        let pages = pages.map_or(Vec::new(), |pages| {
            self.found.notes.extend(pages.notes);
            pages.blocks
        });
        let tag = &self.question.tag;
        let listed = found.large.len();
        // Those of a session in which an earlier search was stopped were told then.
        if self.question.sizes != Sizes::Small && left.from == 0 {
            let pages = pages.iter().filter(|page| tag.matches(page.tag)).cloned();
            found.large.extend(pages.map(|page| (session.id, page)));
        }
        if only_large {
            return Ok(());
        }
        found.walked = true;
        let small = sessions::small_blocks(kernel, session, &|other| tag.matches(other), &pages, left);
        let small = self.found.piece(&format!("small blocks of {what}"), place, small)?;
        if let Some(small) = small {
            self.found.answered = true;
            found.read = found.read.saturating_add(small.read);
            self.found.notes.extend(small.notes);
            found.small.extend(small.blocks.into_iter().map(|block| (index, block)));
            self.found.stopped = small.stopped.map(|address| Place { session: Some(session.id), address });
        }
        if self.found.stopped.is_some_and(|stopped| stopped.address == 0) {
            found.large.truncate(listed);
        }
        Ok(())
    }
}
