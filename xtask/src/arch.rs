//! The architecture check: the lines of docs/src/architecture.md that say **Invariant** and that a program can check.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::root;

mod attention;
mod circles;
mod cubes;
mod file_circles;
mod files;
mod gpu_features;
mod import_graph;
mod modules;
mod source;
mod tensor_free;
mod tree;
mod workspace;

/// A rule adds what breaks it.
type FileRule = fn(&tree::Tree, &mut Vec<String>);
type PackageRule = fn(&Path, &mut Vec<String>) -> Result<()>;

/// What is true of packages.
const PACKAGES: [(&str, PackageRule); 4] = [
    ("dependency direction", workspace::imports),
    ("CUDA stand-in", workspace::cuda_stand_in),
    ("one build for all programs", workspace::one_build),
    ("dev profile", workspace::dev_profile),
];
/// What is true of Rust files.
const FILES: [(&str, FileRule); 10] = [
    ("files without a module", tree::check),
    ("file sizes", files::sizes),
    ("unsafe code", files::unsafe_code),
    ("GPU instructions", files::gpu_instructions),
    ("weights on the CPU", files::stored_weights),
    ("tensor-free bookkeeping", tensor_free::check),
    ("the model's attention", attention::check),
    ("circles of rooms", circles::check),
    ("circles of files", file_circles::check),
    ("cfgs of devices", gpu_features::check),
];

/// Checks everything and reports all that is wrong.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let (mut root, mut circles, mut cubes) = (root(), false, false);
    for &flag in flags {
        match flag {
            "--circles" => circles = true,
            "--cubes" => cubes = true,
            _ if flag.starts_with('-') => bail!("arch knows no {flag}"),
            dir => root = PathBuf::from(dir),
        }
    }
    let tree = tree::Tree::read(&root)?;
    if circles {
        print("circles of rooms in one folder", &circles::notes(&tree));
        print("circles of files", &file_circles::notes(&tree));
    }
    if cubes {
        print("kernels with many arguments", &cubes::notes(&tree));
    }

    let mut num = 0;
    let mut note = |name: &str, wrong: Vec<String>| {
        num += wrong.len();
        if !wrong.is_empty() {
            print(name, &wrong);
        }
    };
    for (name, rule) in PACKAGES {
        let mut wrong = Vec::new();
        rule(&root, &mut wrong)?;
        note(name, wrong);
    }
    for (name, rule) in FILES {
        let mut wrong = Vec::new();
        rule(&tree, &mut wrong);
        note(name, wrong);
    }
    if num > 0 {
        bail!("{num} violations of the architecture");
    }
    let names = PACKAGES.map(|rule| rule.0).into_iter();
    let names: Vec<&str> = names.chain(FILES.map(|rule| rule.0)).collect();
    println!("as described: {}", names.join(", "));
    Ok(())
}

fn print(name: &str, lines: &[String]) {
    println!("{name}: {}", lines.len());
    for line in lines {
        println!("  {}", line.replace('\n', "\n  "));
    }
}
