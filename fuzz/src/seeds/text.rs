//! What people type.

use super::Seed;

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, lines: &[&str]| {
        for (number, line) in lines.iter().enumerate() {
            seeds.push(Seed::new(target, format!("line-{number:02}"), *line));
        }
    };
    add("command_line", COMMANDS);
    add("script", SCRIPTS);
    add("connection", CONNECTIONS);
    add("symbol_path", PATHS);
    seeds
}

const COMMANDS: &[&str] = &[
    "!poolused 4 Leak; !verifier 0x80 @rcx",
    "? poi(nt!x) + by(@rip) * 3 - (0n10 | 0x1f & ~2) >> 4",
    "?? @@c++(sizeof(int)) + @@masm(hi(12345678))",
    "dq fffff800`02600000 L20",
    "dps rsp L?-8; u rip L 3",
    "db 1000 1fff",
    ".if (@rax == 0) { ? 1 } .elsif (2 > 1) { ? 2 } .else { .echo 'x;y' }",
    ".foreach /pS 1 /ps 2 (a { lm 1m }) { .echo ${a} }",
    ".for (r $t0 = 0; @$t0 < 5; r $t0 = @$t0 + 1) { ? @$t0 }",
    "bp nt!fx \"k; g\"; bu fx+5 /p 80; ba w4 rsp",
    "as /x here poi(rsp); .echo ${here} $u0; ad *",
    "$$ a comment; * another\n? 1",
    "x nt!*Pool*; s -a 0 L?1000 \"Leak\"; s -d rsp L10 1 2 3",
    "j (1 == 1) 'a' ; 'b'",
    "!list -t nt!_LIST_ENTRY.Flink -x \"dt x @$extret\" poi(nt!x)",
    ".printf \"%p %y %ma %d\\n\", @rsp, nt!x, 5, 0y101 + 0t17",
    "? $iment(nt) != -1 and $spat(\"a\", \"a*\") or wo(1) dwo(2) qwo(3) $fnsucc(4,5,6)",
    "10m 500ms 3",
    "fffff800`02600000 L20",
    "fx L?-8",
    "1000 1fff",
    "@rsp-8 Lpoi(fx)+1",
    "1 + ",
    "((((((((((1))))))))))",
];

const SCRIPTS: &[&str] = &[
    "r $t0 = 0\n.while (@$t0 < 5) { r $t0 = @$t0 + 1; .if (@$t0 == 3) { .continue }; ? @$t0 }\n.echo done",
    ".for (r $t1 = 1; 1; r $t1 = @$t1 * 2) { .if (@$t1 > 100) { .break } }\n? @$t1",
    ".foreach (word { .echo one two three }) { .echo <${word}> }",
    ".foreach /s (word \"a b c\") { .foreach (other { .echo ${word}1 ${word}2 }) { ? 1 } }",
    "as name value\n.echo name ${name}\nal\nad name\n.echo ${name}",
    "aS /x number 0n42\n.block { ? ${number} }\naS ${/v:number} 5",
    ".catch { ? poi(0); .leave; .echo never }\n.echo after",
    "n 10\n? 10 + 0x10\nn 16\n.formats 41424344",
    ".printf \"%d %x %%\\n\", 5, 0n16\n.printf /D \"<b>x</b>\"",
    "j (@$t0) '.echo yes' ; '.echo no'",
    "r $t0 = 3; .echo x; r $t0 = @$t0 - 1; z (@$t0)",
    ".while (1) { .echo again }",
    "? 1; q\n? 2",
    "!poolused; k; g; lm; x nt!*\n.reload\n!verifier 3",
    "r $.u0 = 5\nr $u0 = .echo hi\n$u0\n.help\n.help !poolused",
    ".if (1) { .if (0) { ? 1 } .else { .if (1) { .echo deep } } } .else { ? 2 }",
    "?? 1 + 2\ndt nt!_X\n.sympath x\n!sym noisy\n.stats",
];

const CONNECTIONS: &[&str] = &[
    "net:port=50000,key=1.2.3.4",
    "net:port=50005,key=2steg4fzbj2sz.23418vzkd4ko3.1g34ou07z4pev.1sp3yo9yz874p,target=0.0.0.0",
    "net:port=1,key=a.b.c.d,target=::",
    "net:target=some.host,key=1.2.3.4,port=65535",
    "com:port=/dev/ttyS0,baud=115200",
    "com:port=COM1",
    "com:pipe,port=\\\\.\\pipe\\com_1,resets=0,reconnect",
    "com:pipe,port=/tmp/kd.sock,resets=5",
    "com:ipport=4445,port=127.0.0.1,reconnect",
    "com:ipport=4445,port=::1",
    "COM:Port=com2,Baud=9600",
    "usb:targetname=x",
    "net:port=0,key=1.2.3",
    "net:port=50000,port=50001,key=1.2.3.4",
];

/// Paths, and a pattern and a name on two lines.
const PATHS: &[&str] = &[
    "srv*",
    "srv*https://msdl.microsoft.com/download/symbols",
    "srv*C:\\symbols*\\\\server\\share*https://a/b;cache*D:\\cache;E:\\mine",
    "symsrv*symsrv.dll*/var/symbols*http://localhost:8080/x",
    "cache*;srv*;.",
    "/a b/c;~/symbols;./x",
    "DownstreamStore*https://a",
    "*Pool*\nExAllocatePoolWithTag",
    "a?c[1-3]*d\nabc2xd",
    "nt!\\*x#\nnt!*x",
];
