//! Marks and checks as Apache Parquet, for a lab that asks its questions of many targets at once.
//!
//! ```text
//! DIR/blocks/machine=NAME/date=2026-11-22/m1-check-1795348800000.parquet
//! DIR/stacks/...   DIR/tags/...
//! ```
//!
//! The columns are described in docs/leaks.md; machine and date are columns too, as engines read them from the path.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RecordWriter;
use parquet_derive::ParquetRecordWriter;

use crate::check::{CheckReport, Group, contents};
use crate::mark::Mark;

#[derive(ParquetRecordWriter)]
struct BlockRow {
    time: NaiveDateTime,
    look: String,
    mark: String,
    elapsed_ms: u64,
    build: u32,
    kernel_pdb: Option<String>,
    tag: String,
    address: u64,
    size: u64,
    verdict: Option<String>,
    evidence: Option<String>,
    stack: Option<String>,
    stack_from: Option<String>,
    no_stack: Option<String>,
}

#[derive(ParquetRecordWriter)]
struct StackRow {
    time: NaiveDateTime,
    look: String,
    mark: String,
    elapsed_ms: u64,
    build: u32,
    kernel_pdb: Option<String>,
    stack: Option<String>,
    bytes: u64,
    count: u64,
    delta_bytes: Option<i64>,
    delta_count: Option<i64>,
    frames: String,
}

#[derive(ParquetRecordWriter)]
struct TagRow {
    time: NaiveDateTime,
    look: String,
    mark: String,
    elapsed_ms: u64,
    build: u32,
    kernel_pdb: Option<String>,
    tag: String,
    blocks: u64,
    bytes: u64,
    allocs: Option<u64>,
    frees: Option<u64>,
    at_least: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: io::Error },
    #[error("{path}: {source}")]
    Parquet { path: String, source: ParquetError },
}

/// What all rows of a look have in common.
struct Look<'a> {
    directory: &'a Path,
    machine: &'a str,
    mark: &'a Mark,
    kind: &'static str,
    time: DateTime<chrono::Utc>,
}

/// Milliseconds from 1601 to 1970.
const FILETIME_EPOCH: i64 = 11_644_473_600_000;

impl<'a> Look<'a> {
    fn new(directory: &'a Path, machine: &'a str, mark: &'a Mark, kind: &'static str, elapsed_ms: u64) -> Self {
        let milliseconds = (mark.snapshot.times.system / 10_000).saturating_add(elapsed_ms) as i64 - FILETIME_EPOCH;
        let time = DateTime::from_timestamp_millis(milliseconds).unwrap_or_default();
        Look { directory, machine, mark, kind, time }
    }

    /// A folder and a name for each table and look; a file is whole or not there.
    fn write<R>(&self, table: &str, rows: &[R]) -> Result<(), ExportError>
    where
        for<'r> &'r [R]: RecordWriter<R>,
    {
        if rows.is_empty() {
            return Ok(());
        }
        let folder = self.directory.join(table).join(format!("machine={}", self.machine));
        let folder = folder.join(format!("date={}", self.time.format("%Y-%m-%d")));
        let name = format!("{}-{}-{}", self.mark.name, self.kind, self.time.timestamp_millis());
        let (path, part) = (folder.join(format!("{name}.parquet")), folder.join(format!(".{name}.part")));
        let shown = path.display().to_string();
        let failed = |source| ExportError::Write { path: shown.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let file = File::create(&part).map_err(failed)?;
        let written = || -> Result<(), ParquetError> {
            let properties = Arc::new(WriterProperties::builder().build());
            let mut writer = SerializedFileWriter::new(file, rows.schema()?, properties)?;
            let mut group = writer.next_row_group()?;
            rows.write_to_row_group(&mut group)?;
            group.close()?;
            writer.close().map(drop)
        };
        written().map_err(|source| ExportError::Parquet { path: shown.clone(), source })?;
        fs::rename(&part, &path).map_err(failed)
    }

    fn kernel_pdb(&self) -> Option<String> {
        self.mark.identity.pdb.clone()
    }

    fn stacks(&self, report: &CheckReport, compared: bool) -> Vec<StackRow> {
        let row = |group: &Group| {
            let frames: Vec<String> = group.frames.iter().map(ToString::to_string).collect();
            StackRow {
                time: self.time.naive_utc(),
                look: self.kind.into(),
                mark: self.mark.name.clone(),
                elapsed_ms: report.elapsed_ms,
                build: self.mark.identity.build.into(),
                kernel_pdb: self.kernel_pdb(),
                stack: group.id.map(|id| id.to_string()),
                bytes: group.bytes,
                count: group.count,
                delta_bytes: compared.then_some(group.delta_bytes),
                delta_count: compared.then_some(group.delta_count),
                frames: frames.join(";"),
            }
        };
        report.stacks.iter().chain(&report.unattributed).map(row).collect()
    }
}

/// Writes a mark's blocks, stacks and tags.
pub fn export_mark(directory: &Path, machine: &str, mark: &Mark) -> Result<(), ExportError> {
    let look = Look::new(directory, machine, mark, "mark", 0);
    let snapshot = &mark.snapshot;
    let blocks: Vec<BlockRow> = snapshot
        .blocks
        .iter()
        .map(|block| BlockRow {
            time: look.time.naive_utc(),
            look: look.kind.into(),
            mark: mark.name.clone(),
            elapsed_ms: 0,
            build: mark.identity.build.into(),
            kernel_pdb: look.kernel_pdb(),
            tag: block.tag().to_string(),
            address: block.address,
            size: block.size,
            verdict: None,
            evidence: None,
            stack: block.stack.map(|id| id.to_string()),
            stack_from: block.stack_from.map(|from| from.word().into()),
            no_stack: block.no_stack.map(|why| why.word().into()),
        })
        .collect();
    look.write("blocks", &blocks)?;
    look.write("stacks", &look.stacks(&contents(mark), false))?;
    let tags: Vec<TagRow> = snapshot
        .counters
        .iter()
        .map(|(&key, counters)| TagRow {
            time: look.time.naive_utc(),
            look: look.kind.into(),
            mark: mark.name.clone(),
            elapsed_ms: 0,
            build: mark.identity.build.into(),
            kernel_pdb: look.kernel_pdb(),
            tag: nt_pool::Tag::from_key(key).0.to_string(),
            blocks: snapshot.outstanding(key).unwrap_or_default(),
            bytes: counters.bytes,
            allocs: None,
            frees: None,
            at_least: None,
        })
        .collect();
    look.write("tags", &tags)
}

/// Writes a check's blocks, stacks and tags.
pub fn export_check(directory: &Path, machine: &str, mark: &Mark, report: &CheckReport) -> Result<(), ExportError> {
    let look = Look::new(directory, machine, mark, "check", report.elapsed_ms);
    let blocks: Vec<BlockRow> = report
        .blocks
        .iter()
        .map(|block| {
            let evidence: Vec<&str> = block.evidence.iter().map(|evidence| evidence.word()).collect();
            BlockRow {
                time: look.time.naive_utc(),
                look: look.kind.into(),
                mark: mark.name.clone(),
                elapsed_ms: report.elapsed_ms,
                build: mark.identity.build.into(),
                kernel_pdb: look.kernel_pdb(),
                tag: block.tag.to_string(),
                address: block.address,
                size: block.size,
                verdict: Some(block.verdict.word().into()),
                evidence: Some(evidence.join(" ")),
                stack: block.stack.map(|id| id.to_string()),
                stack_from: block.stack_from.map(|from| from.word().into()),
                no_stack: block.no_stack.map(|why| why.word().into()),
            }
        })
        .collect();
    look.write("blocks", &blocks)?;
    look.write("stacks", &look.stacks(report, true))?;
    let outstanding = |key, allocs: Option<u64>, frees: Option<u64>| {
        let then = mark.snapshot.outstanding(key).unwrap_or_default();
        then.wrapping_add(allocs.unwrap_or_default()).wrapping_sub(frees.unwrap_or_default())
    };
    let tags: Vec<TagRow> = report
        .tags
        .iter()
        .map(|tag| TagRow {
            time: look.time.naive_utc(),
            look: look.kind.into(),
            mark: mark.name.clone(),
            elapsed_ms: report.elapsed_ms,
            build: mark.identity.build.into(),
            kernel_pdb: look.kernel_pdb(),
            tag: tag.tag.to_string(),
            blocks: outstanding(tag.tag.key(), tag.allocs, tag.frees),
            bytes: tag.bytes,
            allocs: tag.allocs,
            frees: tag.frees,
            at_least: Some(tag.at_least),
        })
        .collect();
    look.write("tags", &tags)
}
