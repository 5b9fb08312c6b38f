//! A watch's outcome for systems that run jobs: JUnit's XML and SARIF.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::json;

use crate::hunt::{Ended, WatchReport};
use crate::line::Line;
use crate::watch::Outcome;

/// The name of one watch's test, and of its rule's place.
fn name(watch: &WatchReport) -> String {
    watch.tag.as_ref().map_or("all tags".into(), |tag| format!("tag {}", tag.clone().cleaned()))
}

fn reasons(watch: &WatchReport) -> String {
    watch.reasons.join("\n").cleaned_lines()
}

trait CleanedLines {
    fn cleaned_lines(self) -> String;
}

impl CleanedLines for String {
    /// Lines stay lines; what orders a terminal about goes.
    fn cleaned_lines(self) -> String {
        self.lines().map(|line| line.to_owned().cleaned()).collect::<Vec<_>>().join("\n")
    }
}

/// One test for each tag that was watched. A confirmed leak fails, with `growing` whatever grows; what has no verdict is
/// an error, and so is a watch that was cut off before it found anything: a job that tests nothing must not look green.
pub fn junit(watch: &WatchReport, growing: bool) -> Result<String, std::fmt::Error> {
    let mut suite = TestSuite::new("kdpool leak");
    for watch in watch.all() {
        let kind = match (watch.outcome, watch.ended) {
            (Outcome::Confirmed, _) => Some(NonSuccessKind::Failure),
            (Outcome::Growing, _) if growing => Some(NonSuccessKind::Failure),
            (Outcome::Unknown, _) => Some(NonSuccessKind::Error),
            (_, Ended::Interrupted | Ended::Stopped | Ended::Failed) => Some(NonSuccessKind::Error),
            (Outcome::Growing | Outcome::Stable | Outcome::Shrinking, Ended::Done) => None,
        };
        let headline = watch.make_headline().cleaned();
        let status = match kind {
            None => TestCaseStatus::success(),
            Some(kind) => {
                let mut status = TestCaseStatus::non_success(kind);
                status.set_message(headline.clone()).set_type(watch.outcome.word()).set_description(reasons(watch));
                status
            }
        };
        let mut case = TestCase::new(name(watch), status);
        case.set_classname("kdpool.leak").set_time(std::time::Duration::from_millis(watch.survivors_age_ms));
        case.set_system_out(format!("{headline}\n{}", reasons(watch)));
        suite.add_test_case(case);
    }
    let mut report = Report::new("kdpool leak");
    report.add_test_suite(suite);
    report.to_string().map_err(|_| std::fmt::Error)
}

/// A result for each tag that grows: an error where a leak is confirmed, else a warning.
pub fn sarif(watch: &WatchReport) -> String {
    let results = watch.all().filter_map(|watch| {
        let level = match watch.outcome {
            Outcome::Confirmed => "error",
            Outcome::Growing => "warning",
            Outcome::Stable | Outcome::Shrinking | Outcome::Unknown => return None,
        };
        let headline = watch.make_headline().cleaned();
        let place = watch.culprit.as_ref().map_or(name(watch), |culprit| culprit.to_string().cleaned());
        Some(json!({
            "ruleId": "pool-leak",
            "level": level,
            "message": { "text": format!("{headline}\n{}", reasons(watch)) },
            "locations": [{ "logicalLocations": [{ "fullyQualifiedName": place, "kind": "function" }] }],
            "properties": {
                "tag": watch.tag,
                "outcome": watch.outcome,
                "bytesPerMinute": watch.bytes_per_minute,
                "stack": watch.culprit.as_ref().map(|culprit| culprit.stack),
            },
        }))
    });
    let results: Vec<_> = results.collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "kdpool",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": [{
                    "id": "pool-leak",
                    "shortDescription": { "text": "Windows kernel pool is leaked" },
                }],
            }},
            "results": results,
        }],
    });
    format!("{log:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(tag: &str, outcome: Outcome) -> WatchReport {
        WatchReport {
            tag: Some(tag.into()),
            outcome,
            reasons: vec!["it <grew> & stays".into()],
            ..WatchReport::default()
        }
    }

    #[test]
    fn a_job_fails_where_something_leaks() {
        let mut report = watch("Le\u{1b}k", Outcome::Confirmed);
        report.others =
            vec![watch("Grow", Outcome::Growing), watch("Stay", Outcome::Stable), watch("None", Outcome::Unknown)];
        let xml = junit(&report, false).unwrap();
        assert!(
            xml.contains(r#"tests="4""#) && xml.contains(r#"failures="1""#) && xml.contains(r#"errors="1""#),
            "{xml}"
        );
        assert!(xml.contains("it &lt;grew&gt; &amp; stays") && !xml.contains('\u{1b}'), "{xml}");
        assert!(junit(&report, true).unwrap().contains(r#"failures="2""#));
        let cut = WatchReport { ended: Ended::Interrupted, ..watch("Stay", Outcome::Stable) };
        assert!(junit(&cut, false).unwrap().contains(r#"errors="1""#));
        let log: serde_json::Value = serde_json::from_str(&sarif(&report)).unwrap();
        let results = log["runs"][0]["results"].as_array().unwrap();
        let levels: Vec<_> = results.iter().map(|result| result["level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["error", "warning"]);
        assert_eq!(log["version"], "2.1.0");
        assert!(results[0]["message"]["text"].as_str().unwrap().starts_with("tag Le\u{fffd}k leaks "), "{log}");
    }
}
