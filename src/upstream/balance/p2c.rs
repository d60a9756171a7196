//! The power of two choices: of two drawn at random, the less loaded one.
//!
//! Nearly as even as asking all of them (Mitzenmacher 2001), and costs the same however many there are.
//! Asking all would also send every worker to the same one, the moment it looks idle.

/// Two different places out of `count`, which must be at least 2. `uniform` is a random number; its
/// halves draw the two.
#[inline]
pub fn draw(count: usize, uniform: u64) -> (usize, usize) {
    let count = count as u64;
    let first = ((uniform >> 32) * count) >> 32;
    // Among the others, so that the two differ.
    let second = (first + 1 + (((uniform & 0xffff_ffff) * (count - 1)) >> 32)) % count;
    (first as usize, second as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_two_differ_and_are_there(count in 2usize..1000, uniform: u64) {
            let (first, second) = draw(count, uniform);
            prop_assert!(first != second && first < count && second < count);
        }
    }

    #[test]
    fn every_pair_is_drawn_alike() {
        let mut drawn = [[0u32; 4]; 4];
        for high in 0..256u64 {
            for low in 0..256u64 {
                let (first, second) = draw(4, high << 56 | low << 24);
                drawn[first][second] += 1;
            }
        }
        let counts = (0..4).flat_map(|i| (0..4).map(move |j| (i, j))).filter(|(i, j)| i != j);
        // 65,536 draws over 12 pairs; a third of 256 is not whole, so they may differ by one in 85.
        assert!(counts.clone().all(|(i, j)| (5400..5520).contains(&drawn[i][j])), "{drawn:?}");
    }
}
