use nt_pool::find::{Bounds, Place, Pool as Wanted, Question, Sizes};

use super::*;

fn arguments(text: &str) -> Result<Arguments, CommandError> {
    parse(text, None)
}

/// The article's addresses, in its order.
const ARTICLE: [u64; 23] = [
    0xfffff8a006a00000,
    0xfffff8a0058fa000,
    0xfffff8a006200000,
    0xfffff8a0068fa000,
    0xfffff8a0060fa000,
    0xfffff8a005a00000,
    0xfffff8a006c00000,
    0xfffff8a006400000,
    0xfffff8a0062fa000,
    0xfffff8a005afa000,
    0xfffff8a005c00000,
    0xfffff8a006e00000,
    0xfffff8a006600000,
    0xfffff8a0064fa000,
    0xfffff8a005cfa000,
    0xfffff8a006afa000,
    0xfffff8a005e00000,
    0xfffff8a006800000,
    0xfffff8a0066fa000,
    0xfffff8a005efa000,
    0xfffff8a006cfa000,
    0xfffff8a006000000,
    0xfffff8a005800000,
];

fn found(new_layout: bool) -> PoolFind {
    let block = |&address| Block {
        address: Hex(address),
        header: None,
        block_size: None,
        previous_size: 0,
        size: 0xfa000,
        tag: "Leak".into(),
        kind: "large",
        pool: Pool::Paged,
        state: "allocated",
        session: None,
        process: None,
        special: false,
        pool_name: "Paged pool".into(),
    };
    PoolFind {
        tag: "Leak".into(),
        searched: "large",
        table: Table { start: Hex(0xfffffa8002e00000), end: Hex(0xfffffa8002f80000) },
        stopped: None,
        stopped_session: None,
        estimate: None,
        bulk: None,
        written: false,
        ranges: Vec::new(),
        blocks: ARTICLE.iter().map(block).collect(),
        checks: Vec::new(),
        key: 0x6b61654c,
        width: Width::Eight,
        new_layout,
    }
}

fn lines(found: &PoolFind) -> Vec<String> {
    let mut text = String::new();
    found.text(&mut text).unwrap();
    text.lines().map(String::from).collect()
}

#[test]
fn the_articles_blocks() {
    let lines = lines(&found(false));
    assert_eq!(lines[0], "");
    assert_eq!(lines[1], "Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)");
    assert_eq!(lines[2], "");
    assert_eq!(lines[3], "*fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
    assert_eq!(lines[25], "*fffff8a005800000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
    assert_eq!(lines.len(), 26);
}

/// facts 8.2.
#[test]
fn small_blocks_have_kds_rows() {
    let mut found = found(false);
    found.searched = "all";
    let small = |header: u64, state| Block {
        address: Hex(header + 8),
        header: Some(Hex(header)),
        size: 0xb8,
        block_size: Some(0xc0),
        tag: "SeSd".into(),
        kind: "small",
        pool: Pool::NonPaged,
        state,
        session: None,
        process: None,
        previous_size: 0x40,
        special: false,
        pool_name: "Nonpaged pool".into(),
    };
    found.tag = "SeSd".into();
    found.width = Width::Four;
    found.ranges = vec![(PoolKind::NonPaged, 0x823b1000..0x82800000)];
    found.blocks = vec![small(0x826fa130, "allocated"), small(0x82721c00, "free")];
    found.stopped = Some(Hex(0xe1224000));
    let old = lines(&found);
    assert_eq!(
        old[3..],
        [
            "",
            "Searching NonPaged pool (823b1000 : 82800000) for Tag: SeSd",
            "",
            "826fa130 size:   c0 previous size:   40  (Allocated) SeSd",
            "82721c00 size:   c0 previous size:   40  (Free)      SeSd",
            "",
            "...terminating - searched pool to e1224000",
        ]
    );
    found.new_layout = true;
    assert_eq!(lines(&found)[6], "826fa138 : tag SeSd, size      0xb8, Nonpaged pool");
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        json["blocks"][0],
        serde_json::json!({
            "address": "0x826fa138", "header": "0x826fa130", "size": 0xb8, "block_size": 0xc0, "tag": "SeSd",
            "kind": "small", "pool": "nonpaged", "state": "allocated"
        })
    );
}

/// facts 8.2: a tag of wildcards is filled up with blanks.
#[test]
fn wildcards_have_a_value_too() {
    let question = arguments("*").unwrap().question;
    let mut found = found(true);
    found.tag = question.tag.to_string();
    found.key = key(&found.tag);
    assert!(lines(&found)[1].contains(" for tag 0x2020202a (*   ) ("), "{:?}", lines(&found));
    found.blocks[0].size = 0x79e8;
    found.blocks[1].size = 0xb70;
    found.blocks[2].size = 0;
    let lines = lines(&found);
    assert!(lines[3].ends_with(" : tag Leak, size    0x79e8, Paged pool"), "{}", lines[3]);
    assert!(lines[4].ends_with(" : tag Leak, size     0xb70, Paged pool"), "{}", lines[4]);
    assert!(lines[5].ends_with(" : tag Leak, size         0, Paged pool"), "{}", lines[5]);
}

#[test]
fn the_current_layout() {
    let lines = lines(&found(true));
    assert_eq!(
        lines[1],
        "Scanning large pool allocation table for tag 0x6b61654c (Leak) (fffffa8002e00000 : fffffa8002f80000)"
    );
    assert_eq!(lines[3], "fffff8a006a00000 : tag Leak, size   0xfa000, Paged pool");
}

#[test]
fn arguments_are_kds() {
    let parsed = |text: &str| {
        arguments(text).map(|a| (a.question.tag.to_string(), a.question.pool)).map_err(|error| error.to_string())
    };
    assert_eq!(parsed("Leak"), Ok(("Leak".into(), None)));
    assert_eq!(parsed("Leak 1"), Ok(("Leak".into(), Some(Wanted::Paged))));
    assert_eq!(parsed("MmSt -paged"), Ok(("MmSt".into(), Some(Wanted::Paged))));
    assert_eq!(parsed(r#"-tag "AB C" 0"#), Ok(("AB C".into(), Some(Wanted::NonPaged))));
    assert_eq!(parsed("Irp"), Ok(("Irp ".into(), None)));
    assert_eq!(parsed("Leak 2"), Ok(("Leak".into(), Some(Wanted::Special))));
    let Arguments { question, bounds, .. } =
        arguments("-small -limit 10 -from fffff8a0`00000000 -free Leak -paged").unwrap();
    assert_eq!((bounds.bytes, question.from), (0x10 << 20, 0xfffff8a000000000));
    assert!(question.free && question.sizes == Sizes::Small && question.pool == Some(Wanted::Paged));
    assert!(parsed("Leak -limit").unwrap_err().contains("megabytes"));
    assert!(parsed("").unwrap_err().contains("no tag"));
    assert!(parsed("Leak 9").unwrap_err().contains("no pool type"));
    assert!(parsed("TooLong").unwrap_err().contains("four characters"));
    assert_eq!(parsed(r#"-tag "A B""#), Ok(("A B ".into(), None)));
    assert!(parsed(r#"-tag "A B"#).unwrap_err().contains("has no end"));
    assert!(parsed(r#"Leak -x ".echo hit"#).unwrap_err().contains("has no end"));
    assert!(parsed("Leak -smal").unwrap_err().contains("unknown option"));
    assert!(parsed("Leak -process -large").unwrap_err().contains("no header"));
    let Arguments { question, command, .. } = arguments(r#"Leak -process -x "dd @$extret L1; .echo 'it'""#).unwrap();
    assert!(question.process && question.sizes == Sizes::Small);
    assert_eq!(command.as_deref(), Some("dd @$extret L1; .echo 'it'"));
}

#[test]
fn a_search_is_resumed_with_options_in_any_order() {
    let place = Place { session: None, address: 0x1000 };
    let mut question = Question::new(nt_pool::Tag(*b"Irp "));
    (question.sizes, question.pool) = (Sizes::Small, Some(Wanted::NonPaged));
    let bounds = Bounds { bytes: 0, budget: None };
    let stopped = StoppedSearch { question: question.clone(), bounds, command: None, place };
    let resumed = Question { resumed: Some(place), ..question };
    for text in ["-resume", "Irp -small -resume", "-resume -limit 400", "-limit 400 -resume Irp", "Irp 0 -resume"] {
        let parsed = parse(text, Some(&stopped)).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed.question, resumed, "{text}");
        assert_eq!(parsed.bounds.bytes, if text.contains("400") { 0x400 << 20 } else { 0 }, "{text}");
    }
    for (text, why) in [
        ("Leak -resume", "another tag"),
        ("-resume -paged", "another pool type"),
        ("-resume -large", "small blocks"),
        ("-resume -from 0", "-from"),
    ] {
        let error = parse(text, Some(&stopped)).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!(parse("-resume", None).unwrap_err().to_string().contains("no search was stopped"));
}

#[test]
fn json_has_the_issues_names() {
    let json = serde_json::to_value(found(false)).unwrap();
    assert_eq!(json["tag"], "Leak");
    assert_eq!(
        json["blocks"][0],
        serde_json::json!({
            "address": "0xfffff8a006a00000", "size": 0xfa000, "tag": "Leak", "kind": "large", "pool": "paged",
            "state": "allocated"
        })
    );
}
