//! Drawing a [`Chart`] with plotters, in pixels of our own counting.

use std::sync::Once;

use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    BLACK, Color, FontStyle, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE, register_font,
};

use super::{Bars, Chart, Panel};
use crate::Failure;

const WIDTH: i32 = 1200;
/// Height of a row of panels.
const ROW: i32 = 460;
/// Height of title, subtitle and legend.
const HEAD: i32 = 110;
/// Panels beside each other.
const BESIDE: usize = 2;
/// Room for the axes' numbers and names, left of and below the bars, and above them.
const LEFT: i32 = 90;
const BOTTOM: i32 = 60;
const ABOVE: i32 = 50;

const FONT: &str = "sans-serif";

/// The chart as SVG.
pub fn svg(chart: &Chart) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size(chart)).into_drawing_area();
        draw(chart, &area)?;
        area.present()?;
    }
    Ok(text)
}

/// The chart as PNG.
pub fn png(chart: &Chart) -> Result<Vec<u8>, Failure> {
    let (width, height) = size(chart);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(chart, &area).map_err(|error| error.to_string())?;
        area.present().map_err(|error| error.to_string())?;
    }
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(file)
}

/// Panels of a chart in rows: stacked ones beside each other, groups of bars are wide.
fn columns(chart: &Chart) -> usize {
    if chart.stacked { chart.panels.len().clamp(1, BESIDE) } else { 1 }
}

fn size(chart: &Chart) -> (u32, u32) {
    let rows = chart.panels.len().div_ceil(columns(chart)) as i32;
    (WIDTH as u32, (HEAD + rows * ROW) as u32)
}

/// A style of text: its size, and where the point it is given lies in it.
fn text(size: i32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&BLACK).pos(Pos::new(horizontal, vertical))
}

fn colour((red, green, blue): super::Colour) -> RGBColor {
    RGBColor(red, green, blue)
}

/// The line across a panel.
fn limit() -> ShapeStyle {
    ShapeStyle::from(&RGBColor(213, 94, 0)).stroke_width(3)
}

fn draw<B: DrawingBackend>(chart: &Chart, area: &DrawingArea<B, Shift>) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    static FONTS: Once = Once::new();
    // Bitmaps need the font's outlines; SVG leaves them to who shows it.
    FONTS.call_once(|| {
        for style in [FontStyle::Normal, FontStyle::Bold] {
            if register_font(FONT, style, UBUNTU_LIGHT).is_err() {
                unreachable!("the font is part of the program, and it is one");
            }
        }
    });
    let failed = |error: plotters::drawing::DrawingAreaErrorKind<B::ErrorType>| error.to_string();
    area.fill(&WHITE).map_err(failed)?;
    let put = |content: &str, at: (i32, i32), style: TextStyle<'static>| {
        area.draw(&Text::new(content.to_owned(), at, style)).map_err(failed)
    };
    put(&chart.title, (LEFT, 12), text(26, HPos::Left, VPos::Top))?;
    put(&chart.subtitle, (LEFT, 46), text(17, HPos::Left, VPos::Top))?;
    legend(chart, area).map_err(failed)?;

    let columns = columns(chart);
    let width = WIDTH / columns as i32;
    // Panels of the same unit share their scale, so that they can be compared.
    for (index, panel) in chart.panels.iter().enumerate() {
        let (least, most) = chart
            .panels
            .iter()
            .filter(|other| other.y_label == panel.y_label)
            .flat_map(|panel| &panel.bars)
            .map(|bars| extent(bars, chart.stacked))
            .fold((f64::INFINITY, 0.0), |(a, b), (least, most)| (a.min(least), most.max(b)));
        let scale = if panel.logarithmic && least > 0.0 {
            Scale::Logarithmic { from: 10f64.powf(least.log10().floor()), to: most }
        } else {
            Scale::Linear { to: most }
        };
        let (column, row) = ((index % columns) as i32, (index / columns) as i32);
        let frame = Frame {
            left: column * width + LEFT,
            right: (column + 1) * width - 20,
            top: HEAD + row * ROW + ABOVE,
            bottom: HEAD + (row + 1) * ROW - BOTTOM,
            scale,
        };
        frame.panel(chart, panel, area).map_err(failed)?;
    }
    Ok(())
}

/// The smallest and the largest height of some bars.
fn extent(bars: &Bars, stacked: bool) -> (f64, f64) {
    let values = &bars.values;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most =
        if stacked { values.iter().sum() } else { values.iter().copied().fold(0.0, f64::max) };
    (least, most.max(bars.mark.unwrap_or(0.0)))
}

type Drawn<B> =
    Result<(), plotters::drawing::DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn legend<B: DrawingBackend>(chart: &Chart, area: &DrawingArea<B, Shift>) -> Drawn<B> {
    let (mut x, y) = (LEFT, 82);
    // Room for a text of this size, roughly.
    let advance = |name: &str| 30 + 9 * name.chars().count() as i32;
    for (name, hue) in &chart.series {
        area.draw(&Rectangle::new([(x, y), (x + 14, y + 14)], colour(*hue).filled()))?;
        area.draw(&Text::new(name.clone(), (x + 20, y - 1), text(16, HPos::Left, VPos::Top)))?;
        x += advance(name);
    }
    if let Some(name) = &chart.line {
        area.draw(&PathElement::new(vec![(x, y + 7), (x + 14, y + 7)], limit()))?;
        area.draw(&Text::new(name.clone(), (x + 20, y - 1), text(16, HPos::Left, VPos::Top)))?;
        x += advance(name);
    }
    if let Some(name) = &chart.mark {
        area.draw(&Circle::new((x + 7, y + 7), 5, BLACK.filled()))?;
        area.draw(&Text::new(name.clone(), (x + 20, y - 1), text(16, HPos::Left, VPos::Top)))?;
    }
    Ok(())
}

/// How values become heights.
#[derive(Clone, Copy)]
enum Scale {
    Linear { to: f64 },
    Logarithmic { from: f64, to: f64 },
}

impl Scale {
    /// The height of a value, as a share of the whole.
    fn share(self, value: f64) -> f64 {
        match self {
            Scale::Linear { to } if to > 0.0 => value / to,
            Scale::Linear { .. } => 0.0,
            Scale::Logarithmic { from, to } => {
                ((value / from).ln() / (to / from).ln()).clamp(0.0, 1.0)
            }
        }
    }

    /// The values that lines are drawn at.
    fn lines(self) -> Vec<f64> {
        let lines = |next: &dyn Fn(usize) -> f64, to: f64| -> Vec<f64> {
            (0..100).map(next).take_while(|&value| value <= to).collect()
        };
        match self {
            Scale::Linear { to } if to > 0.0 => lines(&|i| i as f64 * tick(to), to),
            Scale::Linear { .. } => vec![0.0],
            Scale::Logarithmic { from, to } => lines(&|i| from * 10f64.powi(i as i32), to),
        }
    }
}

/// Where the bars of a panel are.
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    scale: Scale,
}

impl Frame {
    /// The height of a value.
    fn y(&self, value: f64) -> i32 {
        self.bottom - (self.scale.share(value) * f64::from(self.bottom - self.top)).round() as i32
    }

    fn panel<B: DrawingBackend>(
        &self,
        chart: &Chart,
        panel: &Panel,
        area: &DrawingArea<B, Shift>,
    ) -> Drawn<B> {
        let middle = (self.left + self.right) / 2;
        let title = text(19, HPos::Center, VPos::Bottom);
        area.draw(&Text::new(panel.title.clone(), (middle, self.top - 22), title))?;
        let x_label = text(16, HPos::Center, VPos::Top);
        area.draw(&Text::new(panel.x_label.clone(), (middle, self.bottom + 32), x_label))?;
        let y_label = text(16, HPos::Right, VPos::Bottom);
        area.draw(&Text::new(panel.y_label.clone(), (self.left - 8, self.top - 14), y_label))?;
        for value in self.scale.lines() {
            let y = self.y(value);
            let line = ShapeStyle::from(&RGBColor(220, 220, 220)).stroke_width(1);
            area.draw(&PathElement::new(vec![(self.left, y), (self.right, y)], line))?;
            let label = text(14, HPos::Right, VPos::Center);
            area.draw(&Text::new(trimmed(value), (self.left - 8, y), label))?;
        }
        if let Some(value) = panel.line {
            let y = self.y(value);
            area.draw(&PathElement::new(vec![(self.left, y), (self.right, y)], limit()))?;
        }
        let places = panel.bars.len().max(1) as i32;
        for (index, bars) in panel.bars.iter().enumerate() {
            let edge = |place: i32| self.left + (self.right - self.left) * place / places;
            let (left, right) = (edge(index as i32), edge(index as i32 + 1));
            let gap = (right - left) / 8;
            self.bars(chart, bars, (left + gap, right - gap), area)?;
            let label = text(15, HPos::Center, VPos::Top);
            let at = ((left + right) / 2, self.bottom + 8);
            area.draw(&Text::new(bars.label.clone(), at, label))?;
        }
        let axis = ShapeStyle::from(&BLACK).stroke_width(1);
        area.draw(&PathElement::new(
            vec![(self.left, self.bottom), (self.right, self.bottom)],
            axis,
        ))
    }

    fn bars<B: DrawingBackend>(
        &self,
        chart: &Chart,
        bars: &Bars,
        (left, right): (i32, i32),
        area: &DrawingArea<B, Shift>,
    ) -> Drawn<B> {
        let note = |content: Option<&String>, x: i32, y: i32| match content {
            None => Ok(()),
            Some(content) => {
                // Readable over a line, too.
                let half = 4 * content.chars().count() as i32;
                let corners = [(x - half, y - 15), (x + half, y - 2)];
                area.draw(&Rectangle::new(corners, WHITE.filled()))?;
                let style = text(12, HPos::Center, VPos::Bottom);
                area.draw(&Text::new(content.clone(), (x, y - 3), style))
            }
        };
        let mut below = 0.0;
        let count = bars.values.len().max(1) as i32;
        for (index, (&value, (_, hue))) in bars.values.iter().zip(&chart.series).enumerate() {
            let edge = |place: i32| left + (right - left) * place / count;
            let (from, to) = match chart.stacked {
                true => (left, right),
                false => (edge(index as i32), edge(index as i32 + 1) - 1),
            };
            let (y_low, y_high) = (self.y(below), self.y(below + value));
            if y_low > y_high {
                let corners = [(from, y_high), (to, y_low)];
                area.draw(&Rectangle::new(corners, colour(*hue).filled()))?;
            }
            if chart.stacked {
                below += value;
            } else {
                note(bars.notes.get(index), (from + to) / 2, y_high)?;
            }
        }
        let middle = (left + right) / 2;
        if chart.stacked {
            note(bars.notes.first(), middle, self.y(extent(bars, true).1) - 4)?;
        }
        match bars.mark {
            Some(mark) => area.draw(&Circle::new((middle, self.y(mark)), 5, BLACK.filled())),
            None => Ok(()),
        }
    }
}

/// The distance of the axis's numbers: 1, 2 or 5 times a power of ten, four to ten of them.
fn tick(most: f64) -> f64 {
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [5.0, 2.0, 1.0].map(|factor| factor * power);
    steps.into_iter().find(|step| most / step >= 4.0).unwrap_or(power)
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_a_few_round_numbers() {
        for most in [0.013, 1.0, 3.9, 7.0, 20.0, 144.0, 99_999.0] {
            let step = tick(most);
            assert!((4.0..=10.0).contains(&(most / step)), "{step} for {most}");
        }
        assert_eq!((trimmed(20.0), trimmed(0.25)), ("20".to_owned(), "0.25".to_owned()));
    }
}
