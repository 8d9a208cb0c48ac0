//! The ratios as a picture: a bar for each, a line where its target is.

use super::report::Race;
use std::fmt::Write;

const LABELS: f64 = 420.0;
const BARS: f64 = 400.0;
const RIGHT: f64 = 70.0;
const LINE: f64 = 22.0;
const TOP: f64 = 40.0;
const REACHED: &str = "#2a7f62";
const MISSED: &str = "#c1663b";

struct Bar {
    label: String,
    ratio: f64,
    target: f64,
}

/// An SVG document with the ratios of all races that had a rival.
pub fn svg(races: &[Race]) -> String {
    let bars = bars(races);
    let most = bars.iter().map(|bar| bar.ratio.max(bar.target)).fold(1.0, f64::max) * 1.05;
    let (width, height) = (LABELS + BARS + RIGHT, TOP + LINE * bars.len() as f64 + 10.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\">how many times as good fonio is; black lines are targets, the grey line is a tie</text>\n"
    );
    let at = |ratio: f64| LABELS + BARS * ratio / most;
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + LINE * i as f64;
        let colour = if bar.ratio >= bar.target { REACHED } else { MISSED };
        let (label, middle, bottom) = (escape(&bar.label), y + 15.0, y + LINE - 2.0);
        let (end, target) = (at(bar.ratio), at(bar.target));
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>\n\
             <rect x=\"{LABELS:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n\
             <line x1=\"{target:.1}\" y1=\"{y:.1}\" x2=\"{target:.1}\" y2=\"{bottom:.1}\" stroke=\"black\" \
             stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{:.2}</text>",
            LABELS - 8.0,
            y + 3.0,
            end - LABELS,
            LINE - 8.0,
            end.max(target) + 6.0,
            bar.ratio,
        );
    }
    let (tie, end) = (at(1.0), height - 10.0);
    let _ = write!(
        text,
        "<line x1=\"{tie:.1}\" y1=\"{TOP:.1}\" x2=\"{tie:.1}\" y2=\"{end:.1}\" stroke=\"grey\" \
         stroke-dasharray=\"3 3\"/>\n</svg>\n"
    );
    text
}

fn bars(races: &[Race]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for race in races {
        for figure in &race.figures {
            for rival in &figure.rivals {
                let Some(ratio) = rival.ratio(figure).filter(|ratio| ratio.is_finite()) else { continue };
                let label = format!("{} ({}) / {}", race.title(), figure.measure.title(), rival.name);
                bars.push(Bar { label, ratio, target: figure.target });
            }
        }
    }
    bars
}

/// Text as XML has it. Control characters, which it cannot have, are left out.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{figure, race};
    use super::super::series::Series;
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b> & \"c\" 'd'\u{1b}\n"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
        let mut figure = figure();
        figure.add("<script>&", None, Series(vec![1.0]));
        let text = svg(&[race(vec![figure])]);
        assert!(text.contains("&lt;script&gt;&amp;") && !text.contains("<script>"), "{text}");
    }

    #[test]
    fn every_ratio_has_a_bar_and_a_target() {
        let text = svg(&[race(vec![figure()])]);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert_eq!((text.matches("<rect x=").count(), text.matches("stroke=\"black\"").count()), (2, 2));
        assert_eq!((text.matches(REACHED).count(), text.matches(MISSED).count()), (1, 1));
        assert!(text.contains(">1.25</text>") && text.contains(">4.00</text>"), "{text}");
        // The longest bar is the widest by 5 % less than all there is: 4 of 4.2.
        assert!(text.contains(&format!("width=\"{:.1}\"", 400.0 * 4.0 / 4.2)), "{text}");
    }

    #[test]
    fn nothing_raced_is_an_empty_picture() {
        let text = svg(&[]);
        assert!(text.contains("</svg>") && !text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
