//! Columns as kubectl prints them: upper-case heads, three spaces between, no lines.

use super::style::Paint;

/// Space between columns.
const GAP: &str = "   ";

/// Rows under heads. Cells are padded to the widest of their column.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty, cells beyond the heads are dropped.
    pub(crate) fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.heads.len(), String::new());
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The text, one line per row, with a line break at its end.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let widths: Vec<usize> = self
            .heads
            .iter()
            .enumerate()
            .map(|(i, head)| {
                let widest = self.rows.iter().map(|row| width(&row[i])).max().unwrap_or(0);
                widest.max(head.len())
            })
            .collect();
        let mut text = String::new();
        let heads: Vec<String> = self.heads.iter().map(|h| (*h).to_owned()).collect();
        push_line(&mut text, &heads, &widths, |cell| paint.bold(cell));
        for row in &self.rows {
            push_line(&mut text, row, &widths, |cell| paint.state(cell));
        }
        text
    }
}

fn push_line(text: &mut String, cells: &[String], widths: &[usize], paint: impl Fn(&str) -> String) {
    let last = cells.len().saturating_sub(1);
    for (i, (cell, wide)) in cells.iter().zip(widths).enumerate() {
        if i == last {
            text.push_str(&paint(cell));
        } else {
            let padded = format!("{cell}{}", " ".repeat(wide.saturating_sub(width(cell))));
            text.push_str(&paint(&padded));
            text.push_str(GAP);
        }
    }
    let trimmed = text.trim_end_matches(' ').len();
    text.truncate(trimmed);
    text.push('\n');
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// What comes from elsewhere must not move the terminal's cursor.
fn clean(cell: String) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    if cell.chars().any(char::is_control) {
        cell.replace(char::is_control, " ")
    } else {
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["NAME", "PHASE", "AGE"]);
        table.row(vec!["demo".into(), "Ready".into(), "3m".into()]);
        table.row(vec!["a-long-name".into(), String::new(), String::new()]);
        let expected = "NAME          PHASE   AGE\ndemo          Ready   3m\na-long-name   -       -\n";
        assert_eq!(table.render(Paint::new(false)), expected);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = Table::new(&["PHASE", "NAME"]);
        table.row(vec!["Ready".into(), "a".into()]);
        table.row(vec!["Pending".into(), "b".into()]);
        let painted = table.render(Paint::new(true));
        let mut bare = String::new();
        let mut rest = painted.as_str();
        while let Some(start) = rest.find('\u{1b}') {
            bare.push_str(&rest[..start]);
            rest = rest[start..].split_once('m').unwrap().1;
        }
        bare.push_str(rest);
        assert_eq!(bare, table.render(Paint::new(false)));
    }

    #[test]
    fn control_characters_of_others_are_not_printed() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec!["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.render(Paint::new(false)), "NAME\na [2J b\n");
    }
}
