//! Bytes to the serial deframer, in pieces.

use kd_wire::packet::{Body, Deframed, Deframer};

/// One input: how long a piece is, and the stream.
pub fn run(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let mut deframer = Deframer::new();
    let (mut noise, mut damaged, mut whole) = (0, 0, 0);
    for bytes in stream.chunks(usize::from(*piece).max(1)) {
        deframer.push(bytes, |deframed| match deframed {
            Deframed::Noise(count) => noise += count,
            Deframed::Packet(packet) => {
                whole += match packet.body {
                    Body::Control => 16,
                    Body::Data(body) => 17 + body.len(),
                }
            }
            Deframed::Bad(_) | Deframed::BadTrailer { .. } | Deframed::TooLong { .. } => damaged += 16,
        });
        if *piece & 7 == 5 {
            deframer.suspect(|_| {});
        }
    }
    // No byte is told twice; but whole packets are found inside of damaged ones.
    if *piece & 7 != 5 {
        assert!(noise + whole <= stream.len(), "{noise} of noise, {whole} in packets");
    }
    assert!(noise + damaged <= stream.len(), "{noise} of noise, {damaged} damaged");
}
