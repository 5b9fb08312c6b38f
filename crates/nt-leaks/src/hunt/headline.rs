//! The answer in one sentence: who, how fast, which tag, how sure, how long the machine lasts.
//!
//! ```text
//! myfault.sys+0x11f6 leaks 197 MB/min (tag Leak, paged pool), confirmed by 4 checks; about 11 h left
//! ```

use super::{Ended, WatchReport};
use crate::survey::{Grade, READINGS};
use crate::units;
use crate::watch::Outcome;

impl WatchReport {
    /// Says what it comes to, and nothing that was not seen.
    pub fn make_headline(&self) -> String {
        let cut = match self.ended {
            Ended::Done => "",
            Ended::Interrupted => "interrupted: ",
            Ended::Stopped => "the target stopped by itself: ",
            Ended::Failed => "cut short: ",
        };
        let answer = match &self.tag {
            None => self.nothing(),
            Some(tag) => self.of_tag(tag),
        };
        format!("{cut}{answer}")
    }

    fn of_tag(&self, tag: &str) -> String {
        let checks = units::count(self.checks.len() as u64, "check");
        let elapsed = self.checks.last().map_or(0, |stop| stop.elapsed_ms) as f64;
        let bytes = self.checks.last().map_or(self.at_mark.bytes, |stop| stop.bytes);
        let rate = units::bytes(self.bytes_per_minute);
        let pool = match self.paged {
            Some(true) => ", paged pool",
            Some(false) => ", nonpaged pool",
            None => "",
        };
        let (who, of) = match &self.culprit {
            Some(culprit) => (culprit.to_string(), format!(" (tag {tag}{pool})")),
            None if pool.is_empty() => (format!("tag {tag}"), String::new()),
            None => (format!("tag {tag}"), format!(" ({})", &pool[2..])),
        };
        let unknown = if self.culprit.is_none() { "; who allocates it is not known" } else { "" };
        let left = self.exhausted_in_minutes.map(|minutes| units::time(minutes * 60_000.0));
        let left = left.map_or(String::new(), |left| format!("; about {left} left"));
        match self.outcome {
            Outcome::Confirmed => format!("{who} leaks {rate}/min{of}, confirmed by {checks}{left}{unknown}"),
            Outcome::Growing => {
                format!("{who} may leak: it grew by {rate}/min{of}, not confirmed by {checks}{left}{unknown}")
            }
            Outcome::Stable => {
                format!(
                    "no leak seen: tag {tag} stood at {} in {checks}, {}",
                    units::bytes(bytes as f64),
                    units::time(elapsed)
                )
            }
            Outcome::Shrinking => {
                let less = self.at_mark.bytes.saturating_sub(bytes) as f64;
                format!(
                    "no leak seen: tag {tag} shrank by {} in {checks}, {}",
                    units::bytes(less),
                    units::time(elapsed)
                )
            }
            Outcome::Unknown => {
                let why = if self.reasons.is_empty() { "nothing is known".into() } else { self.reasons.join("; ") };
                format!("no verdict on tag {tag}: {why}")
            }
        }
    }

    /// No tag was watched.
    fn nothing(&self) -> String {
        let survey = self.survey.clone().unwrap_or_default();
        let elapsed = units::time(survey.elapsed_ms as f64);
        // It ended between the survey and the mark.
        if let Some(grower) = self.growers.first().filter(|grower| grower.grade > Grade::Uneven) {
            let grew = units::bytes(grower.bytes as f64 - grower.bytes_then as f64);
            let (tag, readings) = (grower.tag, survey.readings);
            return format!(
                "no verdict: tag {tag} grew by {grew} in {readings} readings, {elapsed}, and was not checked"
            );
        }
        if let Some(untagged) = self.untagged {
            let what = match (untagged.nonpaged, untagged.mdl) {
                (_, 0) => "nonpaged memory",
                (0, _) => "pages for MDLs",
                _ => "nonpaged memory and pages for MDLs",
            };
            let rate = units::bytes(untagged.bytes_per_minute);
            return format!("{what} grew by {rate}/min that no pool tag shows: page ranges, contiguous memory or MDLs");
        }
        match survey.readings {
            0 | 1 => "no verdict: the tags were not compared".into(),
            few if few < READINGS => {
                format!("no verdict: {few} readings of {} tags, {elapsed}, are too few", survey.tags)
            }
            readings => {
                format!("no leak seen: none of {} tags grew steadily in {readings} readings, {elapsed}", survey.tags)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::stack::Stacks;
    use crate::survey::Grade;

    fn stop(elapsed_ms: u64, bytes: u64) -> Stop {
        Stop {
            elapsed_ms,
            frozen_ms: 1.0,
            requests: 10,
            bytes_read: 1000,
            outstanding: 25,
            bytes,
            still: 23,
            freed: 0,
            reused: 0,
            new: 2,
            unknown: 0,
            log_records: None,
            log_wrapped: false,
        }
    }

    fn report(outcome: Outcome) -> WatchReport {
        let frame = Frame { address: 0x11f6, module: Some("myfault".into()), offset: 0x11f6, symbol: None };
        WatchReport {
            tag: Some("Leak".into()),
            outcome,
            reasons: vec!["no check was made".into()],
            culprit: Some(Culprit {
                module: "myfault.sys".into(),
                offset: 0x11f6,
                symbol: None,
                stack: Stacks::default().add(vec![frame]),
                share: 100,
            }),
            paged: Some(true),
            bytes_per_minute: 206_569_472.0,
            exhausted_in_minutes: Some(661.0),
            at_mark: AtMark { outstanding: 23, bytes: 23_552_000, blocks: 23 },
            checks: [1, 2, 3, 4].map(|i| stop(1000 * i, 23_552_000 + 3_000_000 * i)).into(),
            ..WatchReport::default()
        }
    }

    #[test]
    fn one_sentence_for_every_end() {
        let leak = report(Outcome::Confirmed);
        assert_eq!(
            leak.make_headline(),
            "myfault.sys+0x11f6 leaks 197 MB/min (tag Leak, paged pool), confirmed by 4 checks; about 11 h left"
        );
        let named = Culprit { symbol: Some("Take+0x26".into()), ..leak.culprit.clone().unwrap() };
        assert_eq!(named.to_string(), "myfault.sys!Take+0x26");
        let nobody = WatchReport { culprit: None, exhausted_in_minutes: None, ..leak.clone() };
        assert_eq!(
            nobody.make_headline(),
            "tag Leak leaks 197 MB/min (paged pool), confirmed by 4 checks; who allocates it is not known"
        );
        assert_eq!(
            report(Outcome::Growing).make_headline(),
            "myfault.sys+0x11f6 may leak: it grew by 197 MB/min (tag Leak, paged pool), not confirmed by 4 checks; \
             about 11 h left"
        );
        let stable = WatchReport { ended: Ended::Failed, ..report(Outcome::Stable) };
        assert_eq!(stable.make_headline(), "cut short: no leak seen: tag Leak stood at 34 MB in 4 checks, 4.0 s");
        let none = WatchReport { checks: Vec::new(), ended: Ended::Interrupted, ..report(Outcome::Unknown) };
        assert_eq!(none.make_headline(), "interrupted: no verdict on tag Leak: no check was made");
        let quiet = WatchReport {
            survey: Some(Surveyed { readings: 8, elapsed_ms: 300_000, tags: 312, requests: 900, frozen_ms: 200 }),
            ..WatchReport::default()
        };
        assert_eq!(quiet.make_headline(), "no leak seen: none of 312 tags grew steadily in 8 readings, 5 min");
        let untagged = Some(Untagged { nonpaged: 6 << 20, mdl: 0, bytes_per_minute: f64::from(2 << 20) });
        assert_eq!(
            WatchReport { untagged, ..quiet }.make_headline(),
            "nonpaged memory grew by 2.0 MB/min that no pool tag shows: page ranges, contiguous memory or MDLs"
        );
        assert_eq!(WatchReport::default().make_headline(), "no verdict: the tags were not compared");
    }

    /// A survey that did not come to its end has found nothing out.
    #[test]
    fn no_verdict_is_worded_that_was_not_reached() {
        let survey = Some(Surveyed { readings: 3, elapsed_ms: 3000, tags: 312, requests: 900, frozen_ms: 200 });
        let cut = WatchReport { ended: Ended::Interrupted, survey, ..WatchReport::default() };
        assert_eq!(cut.make_headline(), "interrupted: no verdict: 3 readings of 312 tags, 3.0 s, are too few");
        let grower = |grade| Grower {
            tag: nt_pool::Tag(*b"Leak"),
            paged: true,
            grade,
            bytes_then: 1 << 20,
            bytes: 4 << 20,
            count_then: 1,
            count: 4,
            allocs: 3,
            frees: 0,
            bytes_per_minute: 6e7,
            count_per_minute: 60.0,
            steadiness: 1.0,
            intervals: 2,
            grew: 2,
        };
        for (grade, words) in [
            (Grade::Leaks, "no verdict: tag Leak grew by 3.0 MB in 3 readings, 3.0 s, and was not checked"),
            (Grade::Uneven, "no verdict: 3 readings of 312 tags, 3.0 s, are too few"),
        ] {
            let found = WatchReport { growers: vec![grower(grade)], ..cut.clone() };
            assert_eq!(found.make_headline(), format!("interrupted: {words}"));
        }
    }

    /// The kernel allocates for drivers, and the verifier stands in between.
    #[test]
    fn the_driver_is_named_and_not_who_allocates_for_it() {
        let frame = |module: &str, offset: u64, symbol: Option<&str>| Frame {
            address: 0x1_0000 + offset,
            module: Some(module.into()),
            offset,
            symbol: symbol.map(Into::into),
        };
        let group = |frames: Vec<Frame>, bytes: u64, delta_bytes: i64| crate::Group {
            id: Some(Stacks::default().add(frames.clone())),
            bytes,
            count: 1,
            delta_bytes,
            delta_count: 1,
            frames,
        };
        let verifier = frame("nt", 1, Some("VeAllocatePoolWithTagPriority+0x2b6"));
        let helper = frame("nt", 2, Some("IoAllocateMdl+0x26"));
        let driver = frame("driver", 3, None);
        let stacks = vec![
            group(vec![verifier.clone(), helper.clone(), driver.clone()], 100, 60),
            group(vec![verifier.clone(), helper.clone()], 900, 20),
        ];
        let module =
            crate::Module { file: Some("driver.sys".into()), ..crate::Module::new(0x1_0000, 0x1000, "driver") };
        let report = CheckReport { stacks, modules: vec![module], ..CheckReport::default() };
        let found = culprit(&report, &Skip::default()).unwrap();
        assert_eq!((found.to_string().as_str(), found.share), ("driver.sys+0x3", 75));
        let all_nt = CheckReport { stacks: report.stacks[1..].to_vec(), ..report.clone() };
        assert_eq!(culprit(&all_nt, &Skip::default()).unwrap().symbol.as_deref(), Some("IoAllocateMdl+0x26"));
        let stable = |group: &crate::Group| crate::Group { delta_bytes: 0, ..group.clone() };
        let stable = CheckReport { stacks: report.stacks.iter().map(stable).collect(), ..report };
        assert_eq!(culprit(&stable, &Skip::default()).unwrap().share, 90);
        assert_eq!(culprit(&CheckReport::default(), &Skip::default()), None);
    }
}
