//! The table of lines, the plot of them, what the machine is, and the files.

use super::figures::{Figures, Line};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// What the machine is.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown", |name| name.trim_start_matches([':', ' ', '\t']));
    format!("{cores} cores ({cpu}), shared by load and servers")
}

/// The first line that `program` says of itself.
pub fn version(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// All lines, ours / the peer's. The column of memory is left out where nobody aims at it.
pub fn markdown(lines: &[Line]) -> String {
    let memory = lines.iter().any(|line| line.aim.memory.is_some());
    let columns = [
        "members",
        "work",
        "per second",
        "ratio",
        "p50 ms",
        "p99 ms",
        "µs of CPU per answer",
    ];
    let mut columns = columns.to_vec();
    if memory {
        columns.extend(["MiB", "ratio"]);
    }
    columns.extend(["errors", "aim"]);
    let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for line in lines {
        let (ours, theirs, ratio) = line.throughput();
        let pair = |of: fn(&Figures) -> f64| {
            let (ours, theirs, _) = line.both(of);
            format!("{ours:.1} / {theirs:.1}")
        };
        let rates = if theirs < 100.0 {
            format!("{ours:.1} / {theirs:.1}")
        } else {
            format!("{ours:.0} / {theirs:.0}")
        };
        let mut cells = vec![line.nodes.to_string(), line.title.clone(), rates, format!("{ratio:.2}")];
        cells.extend([pair(|f| f.p50), pair(|f| f.p99), pair(|f| f.server_micros)]);
        if memory {
            let (ours, theirs, ratio) = line.memory();
            cells.extend([format!("{ours:.0} / {theirs:.0}"), format!("{ratio:.2}")]);
        }
        let (ours, theirs) = line.errors();
        cells.extend([format!("{ours} / {theirs}"), line.verdict()]);
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// One bar of a plot.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What was done.
    pub label: String,
    /// Ours as a multiple of the peer's.
    pub ratio: f64,
    /// What was aimed at.
    pub aim: Option<f64>,
}

/// Our rates as multiples of the peer's.
pub fn rates(lines: &[Line]) -> Vec<Bar> {
    let bar = |line: &Line| Bar {
        label: match line.nodes {
            1 => format!("1 member: {}", line.title),
            nodes => format!("{nodes} members: {}", line.title),
        },
        ratio: line.throughput().2,
        aim: line.aim.throughput,
    };
    lines.iter().map(bar).collect()
}

/// Bars: our rate as a multiple of the peer's. A line marks the peer, a tick each aim. `ours` and `peer` as titles call them.
pub fn svg(bars: &[Bar], ours: &str, peer: &str) -> String {
    const LEFT: usize = 290;
    const WIDTH: f64 = 430.0;
    const ROW: usize = 26;
    const TOP: usize = 46;
    let widest = bars.iter().map(|bar| bar.ratio).filter(|r| r.is_finite());
    let most = widest.fold(2.0, f64::max) * 1.05;
    let left = LEFT as f64;
    let x = |ratio: f64| left + ratio / most * WIDTH;
    let height = TOP + bars.len() * ROW + 20;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {height}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>Answers per second of {ours} as a multiple of {peer}'s</title>\n\
         <rect width=\"800\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" font-weight=\"bold\">Answers per second, as a multiple of {peer}'s (tick: aim)</text>\n"
    );
    // What was not measured has no bar.
    for (n, bar) in bars.iter().enumerate().filter(|(_, bar)| bar.ratio.is_finite()) {
        let (y, ratio) = (TOP + n * ROW, bar.ratio);
        let colour = if ratio >= 1.0 { "#2f7d4f" } else { "#b4552d" };
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>\n",
            LEFT - 8,
            y + 14,
            bar.label,
            x(ratio) - left,
            ROW - 8,
            x(ratio) + 5.0,
            y + 14,
        ));
        if let Some(aim) = bar.aim {
            svg.push_str(&format!(
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#222\" stroke-width=\"2\"/>\n",
                x(aim),
                y - 2,
                y + ROW - 6
            ));
        }
    }
    svg.push_str(&format!(
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/>\n\
         <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\" fill=\"#555\">{peer}</text>\n</svg>\n",
        x(1.0),
        TOP - 8,
        height - 12
    ));
    svg
}

/// Writes `files` (name and text) into `folder`, and says where they are.
pub fn write(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
