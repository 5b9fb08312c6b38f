//! The multi-stream file that a PDB is.

/// A block of Microsoft's own files.
pub(super) const BLOCK: usize = 4096;
const MAGIC: &[u8; 32] = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0";

/// Readers want a whole block of this size at the start.
const LEAST: usize = 4096;

/// The file with these streams, in blocks of so many bytes: 0x200, 0x400, 0x800 or 0x1000.
///
/// ```text
/// block 0          superblock
/// block 1, 2       free block map: the first is in use; again in every so many blocks as one has bytes
/// ...              streams, then the directory, then the list of the directory's blocks
/// ```
pub fn container(streams: &[Vec<u8>], block: usize) -> Vec<u8> {
    let mut file = vec![0; 3 * block];
    let mut directory: Vec<u32> = vec![streams.len() as u32];
    directory.extend(streams.iter().map(|stream| stream.len() as u32));
    for stream in streams {
        directory.extend(append(&mut file, stream, block));
    }
    let directory: Vec<u8> = directory.into_iter().flat_map(u32::to_le_bytes).collect();
    let map: Vec<u8> = append(&mut file, &directory, block).into_iter().flat_map(u32::to_le_bytes).collect();
    let map_block = append(&mut file, &map, block)[0];
    if is_free_map(file.len() / block, block) {
        file.resize(file.len() + 2 * block, 0);
    }
    file.resize(file.len().max(LEAST), 0);
    let blocks = file.len() / block;

    // A set bit is a free block. The map is one stream over all of its blocks: a bit for every block of the file.
    let intervals = blocks.div_ceil(block);
    let mut free = vec![0xff; intervals * block];
    for number in 0..blocks {
        free[number / 8] &= !(1 << (number % 8));
    }
    for (interval, part) in free.chunks(block).enumerate() {
        let at = (interval * block + 1) * block;
        if let Some(place) = file.get_mut(at..at + block) {
            place.copy_from_slice(part);
        }
    }

    file[..32].copy_from_slice(MAGIC);
    for (at, value) in [(32, block), (36, 1), (40, blocks), (44, directory.len()), (52, map_block as usize)] {
        file[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    }
    file
}

/// Appends whole blocks, around those of the free block map; returns their numbers.
fn append(file: &mut Vec<u8>, stream: &[u8], block: usize) -> Vec<u32> {
    let mut blocks = Vec::new();
    for part in stream.chunks(block) {
        while is_free_map(file.len() / block, block) {
            file.resize(file.len() + block, 0);
        }
        blocks.push((file.len() / block) as u32);
        file.extend(part);
        file.resize(file.len().next_multiple_of(block), 0);
    }
    blocks
}

fn is_free_map(number: usize, block: usize) -> bool {
    matches!(number % block, 1 | 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], index: usize) -> usize {
        u32::from_le_bytes([bytes[index * 4], bytes[index * 4 + 1], bytes[index * 4 + 2], bytes[index * 4 + 3]])
            as usize
    }

    fn gather(file: &[u8], blocks: &[usize], length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            blocks.iter().flat_map(|block| &file[block * BLOCK..(block + 1) * BLOCK]).copied().collect();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn streams_go_around_the_free_block_maps() {
        // More than 4,096 blocks, so that the second pair of map blocks lies amid the first stream.
        let large: Vec<u8> = (0..4200 * BLOCK as u32 / 4).flat_map(u32::to_le_bytes).collect();
        let streams = [Vec::new(), large, b"small".to_vec()];
        let file = container(&streams, BLOCK);

        let header = &file[..56];
        assert_eq!(word(header, 10) * BLOCK, file.len());
        let directory_length = word(header, 11);
        let map = gather(&file, &[word(header, 13)], BLOCK);
        let blocks: Vec<usize> = (0..directory_length.div_ceil(BLOCK)).map(|at| word(&map, at)).collect();
        let directory = gather(&file, &blocks, directory_length);
        assert_eq!(word(&directory, 0), streams.len());
        let mut next = 1 + streams.len();
        for (number, stream) in streams.iter().enumerate() {
            assert_eq!(word(&directory, 1 + number), stream.len());
            let count = stream.len().div_ceil(BLOCK);
            let blocks: Vec<usize> = (next..next + count).map(|at| word(&directory, at)).collect();
            assert!(blocks.iter().all(|block| !is_free_map(*block, BLOCK)));
            assert!(gather(&file, &blocks, stream.len()) == *stream, "stream {number}");
            next += count;
        }
        // Every block of the file is in use, and no other.
        let map = gather(&file, &[1, 4097], 2 * BLOCK);
        let free = |block: usize| map[block / 8] >> (block % 8) & 1 == 1;
        assert!((0..file.len() / BLOCK).all(|block| !free(block)));
        assert!((file.len() / BLOCK..map.len() * 8).all(free));
    }
}
