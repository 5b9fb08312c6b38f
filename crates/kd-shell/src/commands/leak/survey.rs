//! A hunt without a tag: which tags grow, by their counters.

use std::time::Instant;

use nt_leaks::survey::{Grade, Grower, Reading, Survey, Terms};
use nt_leaks::{Ended, LookError, Surveyed, units};

use super::arguments::Arguments;
use crate::error::CommandError;
use crate::output::difference;
use crate::shell::{Drive, is_cancelled};

/// What is drawn again and again at a terminal must not be broken.
const COLUMNS: usize = 79;
/// Growers that a line names.
const NAMED: usize = 3;

/// What a survey found.
pub(super) struct Found {
    pub(super) survey: Survey,
    /// Those that are worth a watch, the worst first.
    pub(super) growers: Vec<Grower>,
    pub(super) summary: Surveyed,
    pub(super) ended: Ended,
    pub(super) failure: Option<CommandError>,
    pub(super) notes: Vec<String>,
    started: Instant,
    first: Option<Reading>,
    /// Requests of a reading of all tags.
    whole: u64,
}

impl Found {
    /// There is time for another look at all tags.
    pub(super) fn has_time(&self) -> bool {
        self.survey.has_time(self.started.elapsed())
    }
}

/// Reads the counters again and again until it is clear what leaks. The target stands still then, unless it ended in
/// another way. `before`: a survey whose growers turned out to leak nothing; it goes on.
pub(super) fn run(drive: &mut Drive<'_>, asked: &Arguments, before: Option<Found>) -> Found {
    let mut found = before.unwrap_or_else(|| begin(asked));
    let spent = drive.cost();
    match readings(drive, &mut found) {
        Ok(ended) => found.ended = ended,
        Err(error) if is_cancelled(&error) => found.ended = Ended::Interrupted,
        Err(error) => (found.ended, found.failure) = (Ended::Failed, Some(error)),
    }
    let spent = difference(spent, drive.cost());
    let survey = &found.survey;
    found.summary = Surveyed {
        readings: survey.readings(),
        elapsed_ms: survey.elapsed_ms(),
        tags: survey.tags(),
        requests: found.summary.requests + spent.requests,
        frozen_ms: found.summary.frozen_ms + spent.frozen.as_millis() as u64,
    };
    found.growers = found.survey.growers();
    found
}

fn begin(asked: &Arguments) -> Found {
    let terms = Terms {
        by: asked.by,
        exclude: asked.exclude.clone(),
        paged: asked.paged,
        every: asked.every,
        // The other half is for the checks.
        run_for: asked.run_for.map(|time| time / 2),
        readings: asked.times.and_then(|times| usize::try_from(times).ok()),
    };
    Found {
        survey: Survey::new(terms),
        growers: Vec::new(),
        summary: Surveyed::default(),
        ended: Ended::Done,
        failure: None,
        notes: Vec::new(),
        started: Instant::now(),
        first: None,
        whole: u64::MAX,
    }
}

fn readings(drive: &mut Drive<'_>, found: &mut Found) -> Result<Ended, CommandError> {
    // The growers of before turned out to be none.
    if found.first.is_some() {
        drive.go()?;
        if drive.run_for(found.survey.next_interval())? {
            return Ok(Ended::Stopped);
        }
        drive.break_in()?;
    }
    loop {
        let before = drive.cost();
        let only = found.survey.follows(found.whole);
        let reading = drive.with(|context| {
            let frozen = context.cost.frozen;
            let mut read = Ok(None);
            context.pool(|kernel| {
                read = Reading::take(kernel, only.as_ref(), found.first.as_ref(), frozen).map(Some);
                Ok(())
            })?;
            read.map_err(|error| match error {
                LookError::Different(different) => CommandError::Failed(different.to_string()),
                LookError::Pool(error) => error.into(),
            })
        })?;
        let Some(reading) = reading else { return Ok(Ended::Failed) };
        let cost = difference(before, drive.cost());
        if reading.is_whole {
            found.whole = cost.requests;
            found.notes.clone_from(&reading.notes);
        }
        found.survey.add(&reading);
        found.first.get_or_insert(reading);
        let frozen = cost.frozen.as_secs_f64() * 1000.0;
        drive.say_row(&line(&found.survey, frozen, COLUMNS), &line(&found.survey, frozen, usize::MAX));
        if found.survey.is_over(found.started.elapsed()) {
            return Ok(Ended::Done);
        }
        drive.go()?;
        if drive.run_for(found.survey.next_interval())? {
            return Ok(Ended::Stopped);
        }
        drive.break_in()?;
    }
}

/// `Reading 3: 412 tags, 3.0 s, stopped 12 ms; 2 grow: Leak +2.0 MB, TcpB +4 KB uneven`: as many of the tags as fit.
fn line(survey: &Survey, frozen_ms: f64, columns: usize) -> String {
    let growers = survey.growers();
    let (elapsed, frozen) = (units::time(survey.elapsed_ms() as f64), units::time(frozen_ms));
    let mut line = format!("Reading {}: {} tags, {elapsed}, stopped {frozen}", survey.readings(), survey.tags());
    if survey.readings() < 2 {
        return line + "\n";
    }
    line += "; ";
    match growers.len() {
        0 => line += "none grows",
        1 => line += "1 grows: ",
        count => line += &format!("{count} grow: "),
    }
    line += &listed(growers.iter().take(NAMED).map(named), columns.saturating_sub(line.len()));
    line + "\n"
}

/// As many of some words as there is room for, in one line.
pub(super) fn listed(words: impl Iterator<Item = String>, columns: usize) -> String {
    const MORE: &str = ", ...";
    let mut list = String::new();
    for word in words {
        let comma = if list.is_empty() { "" } else { ", " };
        if list.len() + comma.len() + word.len() + MORE.len() > columns {
            return if list.is_empty() { "...".into() } else { list + MORE };
        }
        list += &format!("{comma}{word}");
    }
    list
}

/// `TcpB +128 KB uneven`
pub(super) fn named(grower: &Grower) -> String {
    let grown = units::bytes(grower.bytes as f64 - grower.bytes_then as f64);
    let grade = match grower.grade {
        Grade::Leaks => "",
        grade => grade.word(),
    };
    format!("{} +{grown} {grade}", grower.tag).trim_end().to_owned()
}
