//! Marks and checks as Apache Parquet, for a lab that asks its questions of many targets at once.
//!
//! ```text
//! DIR/blocks/machine=NAME/date=2026-11-22/check-1795348800000.parquet
//! DIR/stacks/...   DIR/tags/...
//! ```
//!
//! The columns are described in docs/leaks.md; machine and date are columns too, as engines read them from the path.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::data_type::{ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use crate::check::{CheckReport, Group, TagBooks, contents};
use crate::mark::Mark;
use crate::snapshot::{NoStack, StackFrom};
use crate::stack::StackId;

/// Why an export is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The system does not take a file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The format does not take what is to be written.
    #[error("cannot write {path}: {source}")]
    Parquet {
        /// Which file.
        path: String,
        /// What the writer says.
        source: ParquetError,
    },
}

type Value<'a, R, T> = Box<dyn Fn(&R) -> Option<T> + 'a>;

/// What a column has in a row.
enum Values<'a, R> {
    Text(Value<'a, R, String>),
    Unsigned(Value<'a, R, u64>),
    Signed(Value<'a, R, i64>),
    /// Milliseconds since 1970. Readers that know of time zones are not told that it is UTC: some want more than this
    /// file to show it then.
    Time(i64),
}

struct Column<'a, R> {
    name: &'static str,
    values: Values<'a, R>,
}

fn text<'a, R>(name: &'static str, value: impl Fn(&R) -> Option<String> + 'a) -> Column<'a, R> {
    Column { name, values: Values::Text(Box::new(value)) }
}

fn unsigned<'a, R>(name: &'static str, value: impl Fn(&R) -> Option<u64> + 'a) -> Column<'a, R> {
    Column { name, values: Values::Unsigned(Box::new(value)) }
}

fn signed<'a, R>(name: &'static str, value: impl Fn(&R) -> Option<i64> + 'a) -> Column<'a, R> {
    Column { name, values: Values::Signed(Box::new(value)) }
}

impl<R> Column<'_, R> {
    fn field(&self) -> Result<Arc<Type>, ParquetError> {
        let (physical, logical) = match self.values {
            Values::Text(_) => (Physical::BYTE_ARRAY, LogicalType::String),
            Values::Unsigned(_) => (Physical::INT64, LogicalType::integer(64, false)),
            Values::Signed(_) => (Physical::INT64, LogicalType::integer(64, true)),
            Values::Time(_) => (Physical::INT64, LogicalType::timestamp(false, TimeUnit::MILLIS)),
        };
        let field = Type::primitive_type_builder(self.name, physical).with_repetition(Repetition::OPTIONAL);
        Ok(Arc::new(field.with_logical_type(Some(logical)).build()?))
    }

    fn write(&self, rows: &[R], group: &mut SerializedRowGroupWriter<'_, impl io::Write + Send>) -> Written {
        match &self.values {
            Values::Text(value) => {
                write::<ByteArrayType>(rows.iter().map(|row| value(row).map(|text| text.into_bytes().into())), group)
            }
            // The bits of the number; its logical type says that it has no sign.
            Values::Unsigned(value) => {
                write::<Int64Type>(rows.iter().map(|row| value(row).map(u64::cast_signed)), group)
            }
            Values::Signed(value) => write::<Int64Type>(rows.iter().map(value), group),
            Values::Time(time) => write::<Int64Type>(rows.iter().map(|_| Some(*time)), group),
        }
    }
}

type Written = Result<(), ParquetError>;

/// Writes the next column.
fn write<T: DataType>(
    values: impl Iterator<Item = Option<T::T>>,
    group: &mut SerializedRowGroupWriter<'_, impl io::Write + Send>,
) -> Written {
    let mut present = Vec::new();
    let mut there = Vec::new();
    for value in values {
        there.push(i16::from(value.is_some()));
        present.extend(value);
    }
    let missing = || ParquetError::General("the schema has fewer columns".into());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(&present, Some(&there), None)?;
    column.close()
}

fn write_table<R>(file: &mut (impl io::Write + Send), rows: &[R], columns: &[Column<'_, R>]) -> Written {
    let fields = columns.iter().map(Column::field).collect::<Result<_, _>>()?;
    let schema = Type::group_type_builder("look").with_fields(fields).build()?;
    let properties = WriterProperties::builder().set_created_by("kdpool".into()).build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for column in columns {
        column.write(rows, &mut group)?;
    }
    group.close()?;
    writer.close().map(drop)
}

struct BlockRow {
    tag: String,
    address: u64,
    size: u64,
    verdict: Option<&'static str>,
    evidence: Option<String>,
    stack: Option<StackId>,
    stack_from: Option<StackFrom>,
    no_stack: Option<NoStack>,
}

struct TagRow {
    tag: String,
    blocks: Option<u64>,
    bytes: u64,
    allocs: Option<u64>,
    frees: Option<u64>,
    at_least: Option<u64>,
}

/// What all rows of a look have in common.
struct Look<'a> {
    directory: &'a Path,
    machine: &'a str,
    mark: &'a Mark,
    kind: &'static str,
    elapsed_ms: u64,
    time: Timestamp,
}

impl<'a> Look<'a> {
    fn new(directory: &'a Path, machine: &'a str, mark: &'a Mark, kind: &'static str, elapsed_ms: u64) -> Self {
        /// Milliseconds from 1601 to 1970.
        const EPOCH: i64 = 11_644_473_600_000;
        let system = (mark.snapshot.times.system / 10_000).saturating_add(elapsed_ms);
        let milliseconds = i64::try_from(system).unwrap_or(i64::MAX).saturating_sub(EPOCH);
        // A clock that shows no time: 1970.
        let time = Timestamp::from_millisecond(milliseconds).unwrap_or_default();
        Look { directory, machine, mark, kind, elapsed_ms, time }
    }

    /// Adds a file to a table. It is whole or not there, and never takes the place of another one.
    fn write<R>(&self, table: &str, rows: &[R], own: Vec<Column<'_, R>>) -> Result<(), ExportError> {
        if rows.is_empty() {
            return Ok(());
        }
        let identity = &self.mark.identity;
        let mut columns = vec![
            Column { name: "time", values: Values::Time(self.time.as_millisecond()) },
            text("look", |_| Some(self.kind.into())),
            text("mark", |_| Some(self.mark.name.clone())),
            unsigned("elapsed_ms", |_| Some(self.elapsed_ms)),
            unsigned("build", |_| Some(identity.build.into())),
            text("kernel_pdb", |_| identity.pdb.clone()),
        ];
        columns.extend(own);
        let folder = self.directory.join(table).join(format!("machine={}", encoded(self.machine)));
        let folder = folder.join(self.time.strftime("date=%Y-%m-%d").to_string());
        let failed = |source| ExportError::Write { path: folder.display().to_string(), source };
        crate::create_private_folder(&folder).map_err(failed)?;
        let mut part = part_in(&folder).map_err(failed)?;
        let no_table = |source| ExportError::Parquet { path: folder.display().to_string(), source };
        write_table(part.as_file_mut(), rows, &columns).map_err(no_table)?;
        let name = format!("{}-{}", self.kind, self.time.as_millisecond());
        for number in 0u32.. {
            let again = if number == 0 { String::new() } else { format!("-{number}") };
            match part.persist_noclobber(folder.join(format!("{name}{again}.parquet"))) {
                Ok(_) => break,
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => part = error.file,
                Err(error) => return Err(failed(error.error)),
            }
        }
        Ok(())
    }

    fn blocks(&self, rows: &[BlockRow]) -> Result<(), ExportError> {
        self.write(
            "blocks",
            rows,
            vec![
                text("tag", |row: &BlockRow| Some(row.tag.clone())),
                unsigned("address", |row: &BlockRow| Some(row.address)),
                unsigned("size", |row: &BlockRow| Some(row.size)),
                text("verdict", |row: &BlockRow| row.verdict.map(String::from)),
                text("evidence", |row: &BlockRow| row.evidence.clone()),
                text("stack", |row: &BlockRow| row.stack.map(|id| id.to_string())),
                text("stack_from", |row: &BlockRow| row.stack_from.map(|from| from.word().into())),
                text("no_stack", |row: &BlockRow| row.no_stack.map(|why| why.word().into())),
            ],
        )
    }

    /// `compared`: there is something that the groups have grown from.
    fn stacks(&self, report: &CheckReport, compared: bool) -> Result<(), ExportError> {
        let rows: Vec<&Group> = report.stacks.iter().chain(&report.unattributed).collect();
        let frames = |group: &&Group| {
            let frames: Vec<String> = group.frames.iter().map(|frame| frame.to_string().replace(';', ":")).collect();
            Some(frames.join(";"))
        };
        self.write(
            "stacks",
            &rows,
            vec![
                text("stack", |group: &&Group| group.id.map(|id| id.to_string())),
                unsigned("bytes", |group: &&Group| Some(group.bytes)),
                unsigned("count", |group: &&Group| Some(group.count)),
                signed("delta_bytes", move |group: &&Group| compared.then_some(group.delta_bytes)),
                signed("delta_count", move |group: &&Group| compared.then_some(group.delta_count)),
                text("frames", frames),
            ],
        )
    }

    fn tags(&self, rows: &[TagRow]) -> Result<(), ExportError> {
        self.write(
            "tags",
            rows,
            vec![
                text("tag", |row: &TagRow| Some(row.tag.clone())),
                unsigned("blocks", |row: &TagRow| row.blocks),
                unsigned("bytes", |row: &TagRow| Some(row.bytes)),
                unsigned("allocs", |row: &TagRow| row.allocs),
                unsigned("frees", |row: &TagRow| row.frees),
                unsigned("at_least", |row: &TagRow| row.at_least),
            ],
        )
    }
}

/// A name as Hive writes it into a path, so that it is one folder whatever it holds.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A file that no engine looks at, until it has its name.
fn part_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new();
    file.prefix(".").suffix(".part");
    file.tempfile_in(folder)
}

/// Writes a mark's blocks, stacks and tags.
pub fn export_mark(directory: &Path, machine: &str, mark: &Mark) -> Result<(), ExportError> {
    let look = Look::new(directory, machine, mark, "mark", 0);
    let snapshot = &mark.snapshot;
    let blocks: Vec<BlockRow> = snapshot
        .blocks
        .iter()
        .map(|block| BlockRow {
            tag: block.tag().to_string(),
            address: block.address,
            size: block.size,
            verdict: None,
            evidence: None,
            stack: block.stack,
            stack_from: block.stack_from,
            no_stack: block.no_stack,
        })
        .collect();
    look.blocks(&blocks)?;
    look.stacks(&contents(mark), false)?;
    let tags: Vec<TagRow> = snapshot
        .counters
        .iter()
        .map(|(&key, counters)| TagRow {
            tag: nt_pool::Tag::from_key(key).0.to_string(),
            blocks: snapshot.outstanding(key),
            bytes: counters.bytes,
            allocs: None,
            frees: None,
            at_least: None,
        })
        .collect();
    look.tags(&tags)
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
                tag: block.tag.to_string(),
                address: block.address,
                size: block.size,
                verdict: Some(block.verdict.word()),
                evidence: Some(evidence.join(" ")),
                stack: block.stack,
                stack_from: block.stack_from,
                no_stack: block.no_stack,
            }
        })
        .collect();
    look.blocks(&blocks)?;
    look.stacks(report, true)?;
    let outstanding = |tag: &TagBooks| {
        Some(mark.snapshot.outstanding(tag.tag.key())?.wrapping_add(tag.allocs?).wrapping_sub(tag.frees?))
    };
    let tags: Vec<TagRow> = report
        .tags
        .iter()
        .map(|tag| TagRow {
            tag: tag.tag.to_string(),
            blocks: outstanding(tag),
            bytes: tag.bytes,
            allocs: tag.allocs,
            frees: tag.frees,
            at_least: Some(tag.at_least),
        })
        .collect();
    look.tags(&tags)
}
