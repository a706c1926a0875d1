//! Bar charts as SVG.
//!
//! Written here: a plotting library would be the largest dependency of the whole work tree, for
//! rectangles and text. The pictures have a background and colours of their own, so that they can be
//! read on a dark page as well, and nothing in them needs a script or a font from elsewhere.

use std::fmt::Write;

use super::stats::Summary;

/// Where bars start: what is left of it is for their names.
const LEFT: f64 = 190.0;
/// How long the axis is.
const AXIS_LENGTH: f64 = 520.0;
/// What is right of the axis is for the longest bar's value.
const RIGHT: f64 = 190.0;
/// The height of a bar, with and without the space below it.
const BAR_STEP: f64 = 24.0;
const BAR_HEIGHT: f64 = 16.0;
/// The height of a group's title, with the space above it.
const GROUP_TITLE: f64 = 30.0;
/// The height of a line of text.
const LINE: f64 = 18.0;
/// Space around everything.
const MARGIN: f64 = 16.0;
/// How many ticks a linear axis has at most.
const TICKS_MAX: f64 = 8.0;
/// Colours, by series: colour-blind people can tell them apart.
const COLOURS: [&str; 6] = [
    "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#666666",
];

/// How lengths stand for values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    /// From the power of ten below the least value. For values that differ by orders of magnitude.
    Logarithmic,
}

/// A chart.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    /// What it shows.
    pub(crate) title: String,
    /// What stands below the title, line by line.
    pub(crate) subtitle: Vec<String>,
    /// The axis' name. The unit is in the numbers: values are seconds.
    pub(crate) axis: String,
    /// How lengths stand for values.
    pub(crate) scale: Scale,
    /// Bars that belong together, from top to bottom.
    pub(crate) groups: Vec<Group>,
    /// What stands below the axis, line by line: the conditions.
    pub(crate) notes: Vec<String>,
}

/// Bars that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// What they share.
    pub(crate) title: String,
    /// From top to bottom.
    pub(crate) bars: Vec<Bar>,
}

/// A bar to the median, with a line from the least value to the most.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    /// What it stands for.
    pub(crate) label: String,
    /// The number of its colour.
    pub(crate) series: usize,
    /// Seconds. Nothing is drawn where there is no value.
    pub(crate) seconds: Option<Summary>,
    /// What stands right of it, after the value.
    pub(crate) remark: String,
}

/// Seconds in the unit that suits them, three digits.
pub(crate) fn seconds_text(seconds: f64) -> String {
    let (value, unit) = if seconds >= 1.0 {
        (seconds, "s")
    } else if seconds >= 1e-3 {
        (seconds * 1e3, "ms")
    } else {
        (seconds * 1e6, "us")
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// A tick's value, without needless digits.
fn tick_text(seconds: f64) -> String {
    if seconds == 0.0 {
        return "0".to_owned();
    }
    let (value, unit) = if seconds >= 0.9999 {
        (seconds, "s")
    } else if seconds >= 0.999e-3 {
        (seconds * 1e3, "ms")
    } else {
        (seconds * 1e6, "us")
    };
    // Ticks are 1, 2 or 5 times a power of ten: what differs from that is rounding.
    format!("{} {unit}", (value * 1e4).round() / 1e4)
}

/// Text, as XML has it. Characters that XML forbids are left out.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => {}
            letter if letter.is_control() => {}
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// An axis: where it starts, where it ends, and where its ticks are.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(scale: Scale, values: &[f64]) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        match scale {
            Scale::Linear => {
                let most = if most > 0.0 { most } else { 1.0 };
                let power = 10_f64.powf((most / TICKS_MAX).log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .map(|factor| factor * power)
                    .into_iter()
                    .find(|step| most / step <= TICKS_MAX)
                    .unwrap_or(most);
                let mut ticks = vec![0.0];
                while ticks.last().is_some_and(|&last| last < most) {
                    ticks.push(ticks.len() as f64 * step);
                }
                let to = ticks.last().copied().unwrap_or(most);
                Self {
                    scale,
                    from: 0.0,
                    to,
                    ticks,
                }
            }
            Scale::Logarithmic => {
                let positive = values.iter().copied().filter(|&value| value > 0.0);
                let least = positive.fold(f64::INFINITY, f64::min);
                let (least, most) = if least.is_finite() {
                    (least, most)
                } else {
                    (1.0, 1.0)
                };
                // A bar of the least value is still to be seen: it does not start at its own value.
                let from = 10_f64.powf((least * 0.9).log10().floor());
                let mut ticks = vec![from];
                let mut tick = from;
                while tick < most || ticks.len() < 2 {
                    tick *= 10.0;
                    ticks.push(tick);
                }
                Self {
                    scale,
                    from,
                    to: tick,
                    ticks,
                }
            }
        }
    }

    /// How far from the axis' start a value is.
    fn length(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.to,
            Scale::Logarithmic => {
                (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
            }
        };
        share.clamp(0.0, 1.0) * AXIS_LENGTH
    }
}

/// Draws a chart.
pub(crate) fn draw(chart: &Chart) -> String {
    let values: Vec<f64> = chart
        .groups
        .iter()
        .flat_map(|group| &group.bars)
        .filter_map(|bar| bar.seconds)
        .flat_map(|summary| [summary.min, summary.max])
        .collect();
    let axis = Axis::new(chart.scale, &values);
    let width = LEFT + AXIS_LENGTH + RIGHT;
    let top = MARGIN + 26.0 + chart.subtitle.len() as f64 * LINE + 4.0;
    let bars: usize = chart.groups.iter().map(|group| group.bars.len()).sum();
    let bottom = top + chart.groups.len() as f64 * GROUP_TITLE + bars as f64 * BAR_STEP + 6.0;
    let height = bottom + 46.0 + chart.notes.len() as f64 * LINE + MARGIN;
    let mut svg = String::new();
    let mut add = |line: String| {
        svg.push_str(&line);
        svg.push('\n');
    };
    add(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222222\">"
    ));
    add(format!("<title>{}</title>", escaped(&chart.title)));
    add(format!(
        "<rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#ffffff\"/>"
    ));
    add(text(
        MARGIN,
        MARGIN + 16.0,
        "font-size=\"17\" font-weight=\"bold\"",
        &chart.title,
    ));
    for (index, line) in chart.subtitle.iter().enumerate() {
        let y = MARGIN + 38.0 + index as f64 * LINE;
        add(text(MARGIN, y, "fill=\"#555555\"", line));
    }
    for &tick in &axis.ticks {
        let x = LEFT + axis.length(tick);
        add(format!(
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#dddddd\"/>"
        ));
        add(text(
            x,
            bottom + 16.0,
            "text-anchor=\"middle\"",
            &tick_text(tick),
        ));
    }
    let mut y = top;
    for group in &chart.groups {
        add(text(MARGIN, y + 20.0, "font-weight=\"bold\"", &group.title));
        y += GROUP_TITLE;
        for bar in &group.bars {
            for line in draw_bar(&axis, bar, y) {
                add(line);
            }
            y += BAR_STEP;
        }
    }
    add(format!(
        "<line x1=\"{LEFT:.1}\" y1=\"{bottom:.1}\" x2=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#222222\"/>",
        LEFT + AXIS_LENGTH
    ));
    let scale = match chart.scale {
        Scale::Linear => "",
        Scale::Logarithmic => " (logarithmic)",
    };
    add(text(
        LEFT + AXIS_LENGTH / 2.0,
        bottom + 36.0,
        "text-anchor=\"middle\"",
        &format!("{}{scale}", chart.axis),
    ));
    for (index, line) in chart.notes.iter().enumerate() {
        let y = bottom + 46.0 + (index + 1) as f64 * LINE;
        add(text(MARGIN, y, "font-size=\"12\" fill=\"#555555\"", line));
    }
    add("</svg>".to_owned());
    svg
}

fn text(x: f64, y: f64, attributes: &str, content: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>",
        escaped(content)
    )
}

fn draw_bar(axis: &Axis, bar: &Bar, y: f64) -> Vec<String> {
    let middle = y + BAR_HEIGHT / 2.0;
    let baseline = middle + 4.5;
    let mut lines = vec![text(
        LEFT - 8.0,
        baseline,
        "text-anchor=\"end\"",
        &bar.label,
    )];
    let (end, mut words) = match bar.seconds {
        None => (LEFT, String::new()),
        Some(seconds) => {
            let colour = COLOURS
                .get(bar.series % COLOURS.len())
                .unwrap_or(&"#666666");
            lines.push(format!(
                "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT:.1}\" \
                 fill=\"{colour}\"/>",
                axis.length(seconds.median)
            ));
            let (from, to) = (
                LEFT + axis.length(seconds.min),
                LEFT + axis.length(seconds.max),
            );
            if seconds.count > 1 {
                let mut path = String::new();
                // Two ends and what joins them.
                let _ = write!(
                    path,
                    "M{from:.1} {:.1}v8M{to:.1} {:.1}v8M{from:.1} {middle:.1}H{to:.1}",
                    middle - 4.0,
                    middle - 4.0
                );
                lines.push(format!(
                    "<path d=\"{path}\" stroke=\"#222222\" stroke-width=\"1.5\" fill=\"none\"/>"
                ));
            }
            (
                to.max(LEFT + axis.length(seconds.median)),
                seconds_text(seconds.median),
            )
        }
    };
    if !bar.remark.is_empty() {
        if !words.is_empty() {
            words.push_str(", ");
        }
        words.push_str(&bar.remark);
    }
    lines.push(text(end + 6.0, baseline, "", &words));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a<b> & \"c\" 'd' \u{0}\u{1b}[31m \u{fffe} \t ü";

    fn chart(scale: Scale, seconds: &[Option<f64>]) -> Chart {
        let bars = seconds
            .iter()
            .enumerate()
            .map(|(index, seconds)| Bar {
                label: NASTY.to_owned(),
                series: index,
                seconds: seconds.and_then(|value| Summary::of([value, value * 2.0, value / 2.0])),
                remark: NASTY.to_owned(),
            })
            .collect();
        Chart {
            title: NASTY.to_owned(),
            subtitle: vec![NASTY.to_owned()],
            axis: NASTY.to_owned(),
            scale,
            groups: vec![Group {
                title: NASTY.to_owned(),
                bars,
            }],
            notes: vec![NASTY.to_owned(); 2],
        }
    }

    /// Parses the picture and sees that everything drawn is inside of it, with finite numbers.
    fn check(svg: &str) -> usize {
        let document = roxmltree::Document::parse(svg).unwrap();
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        let number = |node: roxmltree::Node<'_, '_>, name: &str| -> Option<f64> {
            node.attribute(name).map(|text| text.parse().unwrap())
        };
        let (width, height) = (
            number(root, "width").unwrap(),
            number(root, "height").unwrap(),
        );
        let mut bars = 0;
        for node in root.descendants().filter(roxmltree::Node::is_element) {
            for (name, limit) in [
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("y", height),
                ("y1", height),
                ("y2", height),
            ] {
                if let Some(value) = number(node, name) {
                    assert!((0.0..=limit).contains(&value), "{name}={value} of {limit}");
                }
            }
            if node.tag_name().name() == "rect" && node.has_attribute("x") {
                let (x, width_of_bar) =
                    (number(node, "x").unwrap(), number(node, "width").unwrap());
                assert!(width_of_bar >= 0.0 && x + width_of_bar <= LEFT + AXIS_LENGTH + 0.1);
                bars += 1;
            }
        }
        bars
    }

    #[test]
    fn pictures_are_well_formed_and_everything_is_inside() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            for seconds in [
                &[][..],
                &[None],
                &[Some(0.0)],
                &[Some(1e-9), Some(1e6)],
                &[Some(0.01), None, Some(0.37), Some(14.0)],
            ] {
                let expected = seconds.iter().flatten().count();
                assert_eq!(
                    check(&draw(&chart(scale, seconds))),
                    expected,
                    "{seconds:?}"
                );
            }
        }
    }

    #[test]
    fn text_survives_as_it_was() {
        let svg = draw(&chart(Scale::Linear, &[Some(1.0)]));
        let document = roxmltree::Document::parse(&svg).unwrap();
        let title = document
            .descendants()
            .find(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title")))
            .unwrap();
        assert_eq!(title.text(), Some("a<b> & \"c\" 'd' [31m    ü"));
    }

    #[test]
    fn longer_bars_stand_for_more() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let values = [0.02, 0.3, 4.0, 50.0];
            let axis = Axis::new(scale, &values);
            let lengths = values.map(|value| axis.length(value));
            assert!(lengths.is_sorted_by(|a, b| a < b), "{lengths:?}");
            assert!(lengths[0] > 0.0 && lengths[3] <= AXIS_LENGTH);
        }
        let axis = Axis::new(Scale::Linear, &[4.0]);
        assert!((axis.length(2.0) * 2.0 - axis.length(4.0)).abs() < 1e-9);
        let axis = Axis::new(Scale::Logarithmic, &[0.1, 100.0]);
        let decade = axis.length(1.0) - axis.length(0.1);
        assert!((axis.length(10.0) - axis.length(1.0) - decade).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::new(Scale::Linear, &[0.37]);
        let texts: Vec<_> = axis.ticks.iter().map(|&tick| tick_text(tick)).collect();
        assert_eq!(
            texts,
            [
                "0", "50 ms", "100 ms", "150 ms", "200 ms", "250 ms", "300 ms", "350 ms", "400 ms"
            ]
        );
        let axis = Axis::new(Scale::Logarithmic, &[0.02, 14.0]);
        let texts: Vec<_> = axis.ticks.iter().map(|&tick| tick_text(tick)).collect();
        assert_eq!(texts, ["10 ms", "100 ms", "1 s", "10 s", "100 s"]);
    }

    #[test]
    fn times_as_people_read_them() {
        let texts = [0.000_012_3, 0.012_34, 0.5, 1.0, 14.06, 361.2].map(seconds_text);
        assert_eq!(
            texts,
            ["12.3 us", "12.3 ms", "500 ms", "1.00 s", "14.1 s", "361 s"]
        );
    }
}
