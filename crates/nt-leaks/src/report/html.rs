//! One page with everything, which opens without a network.

use std::fmt::Write;

use super::flame::{Column, escaped, flame_graph};
use crate::check::{CheckReport, Growth};
use crate::stack::Skip;

/// Light or dark, as the reader's browser is. The graphs are always light.
const STYLE: &str = ":root{color-scheme:light dark}body{font:14px system-ui,sans-serif;margin:1.5em;max-width:1240px}\
table{border-collapse:collapse;margin:.5em 0}th,td{border:1px solid #8886;padding:2px 8px;text-align:left;\
font:12px ui-monospace,monospace;vertical-align:top;overflow-wrap:anywhere}th{background:#8883;cursor:pointer;\
white-space:nowrap}td.n{text-align:right;white-space:nowrap}pre{margin:0;font:inherit;white-space:pre-wrap}\
.still{background:#e8743b30}.new{background:#e8c83b40}.freed{background:#4ba04b30}.reused{background:#4b80c030}\
input{font:inherit;width:30em;max-width:100%;padding:2px 6px}\
svg{display:block;max-width:100%;height:auto;border:1px solid #8886;margin:.5em 0;background:#fff}";

/// Tables are sorted by a click on their head, and filtered by the box above.
const SCRIPT: &str = "document.querySelectorAll('th').forEach(function(h){h.onclick=function(){\
var t=h.closest('table'),i=h.cellIndex,b=t.tBodies[0],d=h.dataset.down=h.dataset.down==='1'?'0':'1';\
[].slice.call(b.rows).sort(function(x,y){var a=x.cells[i],c=y.cells[i];\
var p=a.dataset.v===undefined?a.textContent.localeCompare(c.textContent):a.dataset.v-c.dataset.v;\
return d==='1'?-p:p;}).forEach(function(r){b.appendChild(r);});};});\
document.querySelectorAll('input').forEach(function(f){f.oninput=function(){var w=f.value.toLowerCase();\
[].forEach.call(document.getElementById(f.dataset.table).tBodies[0].rows,function(r){\
r.style.display=r.textContent.toLowerCase().indexOf(w)<0?'none':'';});};});";

/// The page of a check, with what it and the checks before it found in use, oldest first, and what they come to and why.
pub fn html(last: &CheckReport, growth: &[Growth], outcome: &[String], skip: &Skip) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(last, growth, outcome, skip, &mut page);
    page
}

fn write_page(
    last: &CheckReport,
    growth: &[Growth],
    outcome: &[String],
    skip: &Skip,
    out: &mut String,
) -> std::fmt::Result {
    let title = format!("Pool since the mark {}", escaped(&last.mark));
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         </head><body>\n<h1>{title}</h1>"
    )?;
    if let Some((outcome, reasons)) = outcome.split_first() {
        writeln!(out, "<h2 id=\"outcome\">{}</h2>\n<ul>", escaped(outcome))?;
        for reason in reasons {
            writeln!(out, "<li>{}</li>", escaped(reason))?;
        }
        writeln!(out, "</ul>")?;
    }
    let s = &last.summary;
    writeln!(
        out,
        "<p id=\"summary\">{} still there, {} freed, {} reused, {} new, {} unknown, after {:.1} s.{}</p>",
        s.still,
        s.freed,
        s.reused,
        s.new,
        s.unknown,
        last.elapsed_ms as f64 / 1000.0,
        if last.log_wrapped { " The verifier's log went round in between." } else { "" }
    )?;
    for tag in &last.tags {
        writeln!(out, "<p>{}</p>", escaped(&tag.to_string()))?;
    }
    for note in &last.notes {
        writeln!(out, "<p>{}</p>", escaped(note))?;
    }
    writeln!(out, "<h2>Growth</h2>\n{}", chart(last, growth))?;
    writeln!(out, "<h2>Stacks</h2>\n<p><input data-table=\"stacks\" placeholder=\"filter stacks\"></p>")?;
    writeln!(
        out,
        "<table id=\"stacks\"><thead><tr><th>Growth, bytes</th><th>Bytes</th><th>Blocks</th><th>Growth, blocks</th>\
         <th>Stack</th></tr></thead><tbody>"
    )?;
    for group in last.stacks.iter().chain(&last.unattributed) {
        let name = group.id.map_or("not in the verifier's log".into(), |id| id.to_string());
        let frames: Vec<String> = skip.fold(&group.frames).iter().map(|frame| escaped(&frame.to_string())).collect();
        let numbers = [
            group.delta_bytes.to_string(),
            group.bytes.to_string(),
            group.count.to_string(),
            group.delta_count.to_string(),
        ];
        let cells = numbers.map(|value| format!("<td class=\"n\" data-v=\"{value}\">{value}</td>")).concat();
        writeln!(out, "<tr>{cells}<td>{name}<pre>{}</pre></td></tr>", frames.join("\n"))?;
    }
    writeln!(out, "</tbody></table>")?;
    writeln!(out, "<h2>Flame graphs</h2>")?;
    for column in [Column::Bytes, Column::Count, Column::Difference] {
        writeln!(out, "{}", flame_graph(last, column, skip))?;
    }
    writeln!(out, "<h2>Blocks</h2>\n<p><input data-table=\"blocks\" placeholder=\"filter blocks\"></p>")?;
    writeln!(
        out,
        "<table id=\"blocks\"><thead><tr><th>Address</th><th>Size</th><th>Tag</th><th>Verdict</th><th>Evidence</th>\
         <th>Stack</th></tr></thead><tbody>"
    )?;
    for block in &last.blocks {
        let verdict = block.verdict.word();
        let evidence: Vec<&str> = block.evidence.iter().map(|evidence| evidence.word()).collect();
        writeln!(
            out,
            "<tr class=\"{verdict}\"><td>{:016x}</td><td class=\"n\" data-v=\"{}\">{:#x}</td><td>{}</td><td>{verdict}</td>\
             <td>{}</td><td>{}{}</td></tr>",
            block.address,
            block.size,
            block.size,
            escaped(&block.tag.to_string()),
            evidence.join(", "),
            block.stack.map_or(String::new(), |id| id.to_string()),
            block.no_stack.map_or(String::new(), |why| format!(" not in the log: {}", why.why()))
        )?;
    }
    writeln!(out, "</tbody></table>\n<script>{SCRIPT}</script>\n</body></html>")
}

/// Bytes in use at each check, over the target's running time.
fn chart(last: &CheckReport, growth: &[Growth]) -> String {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 160.0;
    let start: f64 = last.tags.iter().map(|tag| tag.bytes_marked).sum::<u64>() as f64;
    let mut points = vec![(0.0, start)];
    points.extend(growth.iter().map(|check| (check.elapsed_ms as f64 / 1000.0, check.bytes as f64)));
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(1e-9, f64::max);
    let (time, bytes) = (most(&mut points.iter().map(|p| p.0)), most(&mut points.iter().map(|p| p.1)));
    let place = |&(x, y): &(f64, f64)| {
        format!("{:.1},{:.1}", 10.0 + x / time * (WIDTH - 20.0), HEIGHT - 10.0 - y / bytes * (HEIGHT - 40.0))
    };
    let line: Vec<String> = points.iter().map(place).collect();
    let dots: String = points
        .iter()
        .map(|point| {
            let at = place(point);
            let (x, y) = at.split_once(',').unwrap_or(("0", "0"));
            format!(
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"#e8743b\"><title>{:.1} s: {} bytes</title></circle>",
                point.0, point.1
            )
        })
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\
         <text x=\"10\" y=\"16\" font-size=\"12\" font-family=\"monospace\">bytes in use, up to {bytes}, over {time:.1} s</text>\
         <polyline fill=\"none\" stroke=\"#e8743b\" stroke-width=\"2\" points=\"{}\"/>{dots}</svg>",
        line.join(" ")
    )
}
