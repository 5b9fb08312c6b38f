//! kd's commands that are not in kdpool, and what comes nearest to each.

use crate::error::CommandError;

/// The words of a command, and what to use here.
const TABLE: &[(&[&str], &str)] = &[
    (&["bm", "by"], "x lists the names of a pattern, bp takes one of them"),
    (
        &["dpp", "dpa", "dpu", "ddp", "dda", "ddu", "dqp", "dqa", "dqu"],
        "dps shows words with their names, da and du text at poi(address)",
    ),
    (&["dl"], "!list -t type.member -x \"commands\" address follows a list"),
    (
        &["dv", "dx", "ld", "ls", "lsa"],
        "public symbols have neither locals nor lines; ?? and dt show values by their types",
    ),
    (&["m", "f", "c"], "d* and e* show and write memory; s searches it"),
    (&["a"], "u shows instructions, e* writes bytes"),
    (
        &["ib", "iw", "id", "ob", "ow", "od", "rdmsr", "wrmsr"],
        "r shows the registers and control registers that the target tells",
    ),
    (
        &["wt", "ta", "tb", "tc", "tt", "tct", "pa", "pc", "pt", "ph", "th", "pct"],
        "t and p step, gu returns, bp and g go on to a place",
    ),
    (&["gh", "gn"], "g handles what the debugger itself has caused and passes on the rest"),
    (&[".writemem", ".dump", ".dumpcab"], ".logopen keeps what is shown; kdpool --format json writes it for programs"),
    (&[".readmem"], "e* writes memory, when .allow_write is on"),
    (
        &[".cxr", ".trap", ".exr", ".ecxr", ".tss"],
        "r and k show the processor that stopped, .thread and k a thread that waits",
    ),
    (
        &[".load", ".loadby", ".unload", ".chain", ".extpath", ".scriptload", ".scriptrun", ".scriptlist"],
        "no extensions are loaded; $$>a<file runs scripts, kdpool --format json feeds programs",
    ),
    (
        &[".server", ".remote", ".clients", ".endsrv", ".servers"],
        "kdpool runs in any shell, ssh and tmux carry it elsewhere",
    ),
    (
        &[".attach", ".create", ".detach", ".kill", ".abandon"],
        "kdpool debugs kernels; q ends the session and lets the target run",
    ),
    (&[".srcpath", ".lsrcpath", ".lines", ".srcfix", "l"], "names have offsets and no lines: public symbols hold none"),
    (&[".exepath"], "images are found along the symbol path (.sympath)"),
    (&[".cache"], "what was read is kept until the target runs, with no size to set"),
    (&[".kframes"], "k takes a number of frames: k 20"),
    (&[".context"], ".process chooses whose user memory is read"),
    (&[".kdfiles"], "files for the target are not served"),
    (&[".restart"], "q and a new kdpool make the connection anew"),
    (
        &[
            ".effmach",
            ".asm",
            ".enable_unicode",
            ".enable_long_status",
            ".force_radix_output",
            ".prompt_allow",
            ".expr",
        ],
        "there is nothing of the kind to set",
    ),
    (&[".open_dump", ".opendump"], "kdpool reads live targets"),
    (&[".shell", "!!"], "programs run in another window"),
    (&[".fnent"], "uf shows all of a function, k what its unwind data comes to"),
    (&["!analyze"], ".bugcheck tells a bugcheck of pool in words and shows what pool knows of it; k shows the stack"),
    (
        &["!object", "!objhdr", "!devobj", "!devstack", "!drvstack", "!devnode", "!fileobj"],
        "!drvobj shows a driver's object, dt nt!_OBJECT_HEADER and dt nt!_DEVICE_OBJECT any",
    ),
    (&["!irp", "!irpfind"], "dt nt!_IRP shows one, !poolfind Irp finds them, !verifier 0x100 shows their log"),
    (
        &["!stacks", "!running", "!ready", "!findstack"],
        "!process 0 7 shows every thread with its stack, ~*k the processors'",
    ),
    (&["!dh", "!imgscan", "!chkimg", "!itoldyouso"], "!lmi and lm v show an image's header"),
    (
        &["!handle", "!token", "!vad", "!peb", "!teb", "!session", "!job", "!locks", "!exqueue"],
        "dt shows structures by their types, !process processes and threads",
    ),
    (
        &["!pcr", "!prcb", "!irql", "!cpuid", "!cpuinfo", "!sysinfo", "!idt", "!apic", "!timer", "!dpcs"],
        "dt nt!_KPCR and dt nt!_KPRCB show a processor's, r its registers",
    ),
    (
        &["!memusage", "!pfn", "!ptov", "!vtop", "!pte2va", "!sysptes", "!address", "!ca", "!filecache"],
        "!vm sums memory up, !pte translates an address",
    ),
    (
        &["!heap", "!htrace", "!gle", "!error", "!avrf", "!critsec", "!dlls", "!cs"],
        "that is of user mode; !poolused, !pool and !verifier are of the kernel's pool",
    ),
    (
        &[
            "!deadlock",
            "!wdfkd.wdfpoolusage",
            "!wdfkd.wdfdriverinfo",
            "!obtrace",
            "!dpa",
            "!frag",
            "!poolpage",
            "!poolinfo",
            "!poollist",
        ],
        "!verifier 3 and 0x80 show what drivers allocated, !leak watch what grows",
    ),
    (&["!whatperftime", "!ext.help", "!kdexts.help", "!help"], ".help lists the commands"),
];

/// What to say of a word that is kd's and not here.
pub(crate) fn not_here(word: &str) -> Option<CommandError> {
    TABLE.iter().find_map(|(words, nearest)| {
        let word = words.iter().find(|known| **known == word)?;
        Some(CommandError::NotHere { word, nearest })
    })
}

/// All of the table.
#[cfg(test)]
fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().flat_map(|(words, nearest)| words.iter().map(|word| (*word, *nearest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::TABLE as COMMANDS;
    use crate::grammar::line::command;

    #[test]
    fn words_that_are_here_are_not_in_the_table() {
        for (word, nearest) in all() {
            assert!(COMMANDS.find(word).is_none(), "{word}");
            assert!(not_here(word).is_some() && !nearest.contains("  ") && nearest.len() < 120, "{word}");
            let page = include_str!("../../../../docs/from-kd.md");
            assert!(page.contains(&format!("`{word}`")), "docs/from-kd.md has no row of {word}");
            // Each of them is what a line's word comes to.
            assert_eq!(command(word).map(|command| command.word), Some(word.to_string()));
        }
    }
}
