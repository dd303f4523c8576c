//! First fit: examples into rows of a fixed number of tokens.

/// Each example of `order` goes to the first row that still has room. Examples longer than `capacity` get a row of their own.
pub(super) fn first_fit(
    order: &[u32],
    length: impl Fn(u32) -> usize,
    capacity: usize,
) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut room = Room::new(order.len());
    for &index in order {
        let length = length(index);
        match room.first(length) {
            Some(row) => {
                rows[row].push(index);
                room.take(row, length);
            }
            None => {
                room.set(rows.len(), capacity.saturating_sub(length));
                rows.push(vec![index]);
            }
        }
    }
    rows
}

/// The room left in each row, as a tree of largest values, so that the first row with enough is found in few steps.
struct Room {
    /// Number of leaves, a power of two.
    size: usize,
    /// Leaf `i` is at `size + i`; a node is at least as large as the two below it. 0 where no row is yet.
    nodes: Vec<usize>,
}

impl Room {
    fn new(rows: usize) -> Self {
        let size = rows.max(1).next_power_of_two();
        Self {
            size,
            nodes: vec![0; 2 * size],
        }
    }

    /// The first row with room for `length` tokens, at least one.
    fn first(&self, length: usize) -> Option<usize> {
        let length = length.max(1);
        if self.nodes[1] < length {
            return None;
        }
        let mut node = 1;
        while node < self.size {
            node = match self.nodes[2 * node] >= length {
                true => 2 * node,
                false => 2 * node + 1,
            };
        }
        Some(node - self.size)
    }

    fn take(&mut self, row: usize, length: usize) {
        let left = self.nodes[self.size + row] - length;
        self.set(row, left);
    }

    fn set(&mut self, row: usize, left: usize) {
        let mut node = self.size + row;
        self.nodes[node] = left;
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].max(self.nodes[2 * node + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First fit by looking at every row.
    fn naive(lengths: &[usize], capacity: usize) -> Vec<Vec<u32>> {
        let mut rows: Vec<(usize, Vec<u32>)> = Vec::new();
        for (index, &length) in lengths.iter().enumerate() {
            let fits = |row: &&mut (usize, Vec<u32>)| row.0 + length <= capacity;
            match rows.iter_mut().find(fits) {
                Some((used, row)) => {
                    *used += length;
                    row.push(index as u32);
                }
                None => rows.push((length, vec![index as u32])),
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    #[test]
    fn the_tree_finds_what_looking_at_every_row_finds() {
        let lengths: Vec<usize> = (0..500usize)
            .map(|i| (i * i * 7 + i * 3) % 41 + 1)
            .collect();
        let order: Vec<u32> = (0..500).collect();
        for capacity in [1, 8, 40, 64] {
            let found = first_fit(&order, |index| lengths[index as usize], capacity);
            assert_eq!(found, naive(&lengths, capacity), "{capacity}");
        }
        assert!(first_fit(&[], |_| 1, 8).is_empty());
    }
}
