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
    let xml = report.to_string().map_err(|_| std::fmt::Error)?;
    // The first is that of `testsuites`, which by Jenkins' schema has none: readers that are strict refuse the file.
    Ok(xml.replacen(" skipped=\"0\"", "", 1))
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
        let place = match &watch.culprit {
            Some(culprit) => json!({ "fullyQualifiedName": culprit.to_string().cleaned(), "kind": "function" }),
            None => json!({ "fullyQualifiedName": name(watch) }),
        };
        Some(json!({
            "ruleId": "pool-leak",
            "level": level,
            "message": { "text": format!("{headline}\n{}", reasons(watch)) },
            "locations": [{ "logicalLocations": [place] }],
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
    use crate::hunt::Culprit;

    fn watch(tag: &str, outcome: Outcome) -> WatchReport {
        WatchReport {
            tag: Some(tag.into()),
            outcome,
            reasons: vec!["it <grew> & stays".into()],
            ..WatchReport::default()
        }
    }

    /// A watch of each outcome, the first with a culprit, and of each end.
    fn every_kind() -> Vec<WatchReport> {
        let outcomes = [Outcome::Confirmed, Outcome::Growing, Outcome::Stable, Outcome::Shrinking, Outcome::Unknown];
        let ends = [Ended::Done, Ended::Interrupted, Ended::Stopped, Ended::Failed];
        let one = |ended| {
            let mut report = watch("a\"<&\u{1}", outcomes[0]);
            report.ended = ended;
            report.culprit = Some(Culprit {
                module: "a<b>.sys".into(),
                offset: 0x11f6,
                symbol: None,
                stack: crate::stack::id(&[]),
                share: 100,
            });
            report.others = outcomes.map(|outcome| watch("Tag ", outcome)).into();
            report
        };
        let none = WatchReport { tag: None, ..watch("", Outcome::Growing) };
        ends.map(one).into_iter().chain([WatchReport::default(), none]).collect()
    }

    /// What an element may have, by the schema of Jenkins' xUnit plugin: attributes that it must have and may have, and
    /// what stands inside.
    type Element = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);
    const JUNIT: [Element; 6] = [
        ("testsuites", &[], &["name", "time", "tests", "failures", "errors"], &["testsuite"]),
        (
            "testsuite",
            &["name", "tests", "failures", "errors"],
            &["skipped", "time", "timestamp", "hostname", "id", "package"],
            &["properties", "testcase", "system-out", "system-err"],
        ),
        (
            "testcase",
            &["name"],
            &["classname", "time", "group"],
            &["skipped", "error", "failure", "system-out", "system-err"],
        ),
        ("failure", &[], &["message", "type"], &[]),
        ("error", &[], &["message", "type"], &[]),
        ("system-out", &[], &[], &[]),
    ];

    #[test]
    fn junit_is_as_strict_readers_want_it() {
        use quick_xml::events::Event;
        for xml in every_kind().iter().flat_map(|watch| [false, true].map(|strict| junit(watch, strict).unwrap())) {
            let mut reader = quick_xml::Reader::from_str(&xml);
            let (mut open, mut seen): (Vec<Element>, usize) = (Vec::new(), 0);
            loop {
                let (tag, empty) = match reader.read_event().unwrap() {
                    Event::Start(tag) => (tag, false),
                    Event::Empty(tag) => (tag, true),
                    Event::End(_) => {
                        open.pop();
                        continue;
                    }
                    Event::Text(text) => {
                        let may = open.last().is_some_and(|(.., inside)| inside.is_empty());
                        assert!(may || text.iter().all(u8::is_ascii_whitespace), "{xml}");
                        continue;
                    }
                    Event::Eof => break,
                    _ => continue,
                };
                let name = String::from_utf8(tag.name().as_ref().to_vec()).unwrap();
                let known = JUNIT.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("{name}: {xml}"));
                match open.last() {
                    Some((.., inside)) => assert!(inside.contains(&known.0), "{name}: {xml}"),
                    None => assert_eq!(name, "testsuites"),
                }
                let has: Vec<String> = tag
                    .attributes()
                    .map(|attribute| String::from_utf8(attribute.unwrap().key.as_ref().to_vec()).unwrap())
                    .collect();
                assert!(known.1.iter().all(|must| has.iter().any(|has| has == must)), "{name}: {xml}");
                assert!(
                    has.iter().all(|has| known.1.contains(&has.as_str()) || known.2.contains(&has.as_str())),
                    "{has:?} of {name}: {xml}"
                );
                seen += 1;
                if !empty {
                    open.push(*known);
                }
            }
            assert!(open.is_empty() && seen >= 3, "{xml}");
        }
    }

    /// An object's members: those that it must have, and those that it may have.
    fn members(value: &serde_json::Value, must: &[&str], may: &[&str]) {
        let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
        assert!(must.iter().all(|name| object.contains_key(*name)), "{must:?}: {value}");
        assert!(object.keys().all(|name| must.contains(&name.as_str()) || may.contains(&name.as_str())), "{value}");
    }

    /// By sections 3.13 to 3.49 of SARIF 2.1.0, whose schema allows no other members: of each object those that are used.
    #[test]
    fn sarif_is_as_its_standard_has_it() {
        for watch in every_kind() {
            let log: serde_json::Value = serde_json::from_str(&sarif(&watch)).unwrap();
            members(&log, &["version", "runs"], &["$schema"]);
            for run in log["runs"].as_array().unwrap() {
                members(run, &["tool", "results"], &[]);
                members(&run["tool"], &["driver"], &[]);
                members(&run["tool"]["driver"], &["name"], &["version", "rules"]);
                let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
                rules.iter().for_each(|rule| members(rule, &["id"], &["shortDescription"]));
                for result in run["results"].as_array().unwrap() {
                    members(result, &["message"], &["ruleId", "level", "locations", "properties"]);
                    members(&result["message"], &["text"], &[]);
                    assert!(["none", "note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
                    assert!(rules.iter().any(|rule| rule["id"] == result["ruleId"]), "{result}");
                    for location in result["locations"].as_array().unwrap() {
                        members(location, &["logicalLocations"], &[]);
                        let logical = location["logicalLocations"].as_array().unwrap();
                        logical.iter().for_each(|place| members(place, &["fullyQualifiedName"], &["kind"]));
                    }
                    // Only `tags` has a meaning of its own in a bag of properties.
                    assert!(result["properties"].get("tags").is_none());
                }
            }
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
