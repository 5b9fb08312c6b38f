use nt_symbols::{Isf, SymbolFile};

/// One input.
pub fn run(data: &[u8]) {
    crate::let_them_be_caught();
    let Ok(isf) = Isf::parse("fuzz.json", data.to_vec()) else { return };
    let _ = (isf.symbol("Foo"), isf.around(0x1000), isf.matching("*o*").len());
    for name in isf.types_matching("*").iter().take(64) {
        let _ = (isf.layout(name), isf.enumeration(name));
    }
}
