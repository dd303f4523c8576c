//! Who imports whom, by name: rooms or files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::modules::Import;

/// An import for each pair of names that has one: by the name that imports, and the one that is imported.
#[derive(Default)]
pub(super) struct ImportGraph(BTreeMap<String, BTreeMap<String, Import>>);

impl ImportGraph {
    /// Keeps the first import of each pair.
    pub(super) fn add(&mut self, from: &str, to: &str, import: Import) {
        let next = self.0.entry(from.to_owned()).or_default();
        next.entry(to.to_owned()).or_insert(import);
    }

    /// Circles that together have every import that is part of one; each is the shortest with one of its imports. Its names,
    /// each with the import of the next one.
    pub(super) fn circles(&self) -> Vec<Vec<(&str, &Import)>> {
        let edges = self.0.iter();
        let edges = edges.flat_map(|(a, next)| next.keys().map(move |b| (a.as_str(), b.as_str())));
        let mut paths: Vec<Vec<&str>> = edges
            .filter_map(|(a, b)| self.shortest_path(b, a))
            .collect();
        paths.sort_by_key(Vec::len);
        let (mut circles, mut seen) = (Vec::new(), BTreeSet::new());
        for path in paths {
            let next = path.iter().cycle().skip(1);
            let edges: Vec<(&str, &str)> = path.iter().copied().zip(next.copied()).collect();
            if edges.iter().all(|edge| seen.contains(edge)) {
                continue;
            }
            let imports = edges.iter().map(|&(a, b)| (a, &self.0[a][b]));
            circles.push(imports.collect());
            seen.extend(edges);
        }
        circles
    }

    /// The names from `start` to `end`, both included.
    fn shortest_path<'a>(&'a self, start: &'a str, end: &str) -> Option<Vec<&'a str>> {
        let mut came_from = BTreeMap::from([(start, None)]);
        let mut queue = VecDeque::from([start]);
        while let Some(name) = queue.pop_front() {
            if name == end {
                let mut path = Vec::new();
                let mut at = Some(name);
                while let Some(name) = at {
                    path.push(name);
                    at = came_from[name];
                }
                path.reverse();
                return Some(path);
            }
            for next in self.0.get(name).into_iter().flat_map(BTreeMap::keys) {
                if !came_from.contains_key(next.as_str()) {
                    came_from.insert(next, Some(name));
                    queue.push_back(next);
                }
            }
        }
        None
    }
}
