//! The same as a picture: for each scenario and rate, how many rollouts were rolled back by when.

use plotters::prelude::*;

use super::{Row, Rule, rivals::Rival};

/// An SVG of all rows, or why it cannot be drawn.
///
/// # Errors
/// When there is nothing to draw, or drawing fails.
pub fn svg(rows: &[Row], horizon: f64) -> Result<String, String> {
    let mut panels: Vec<&[Row]> =
        rows.chunk_by(|a, b| a.scenario == b.scenario && a.rate == b.rate).collect();
    panels.retain(|panel| !panel.is_empty());
    if panels.is_empty() {
        return Err("there is nothing to draw".to_owned());
    }
    let columns = panels.len().min(COLUMNS);
    let lines = panels.len().div_ceil(columns);
    let (width, height) = (columns as u32 * PANEL.0, lines as u32 * PANEL.1);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let areas = root.split_evenly((lines, columns));
        for (area, panel) in areas.iter().zip(panels) {
            draw(area, panel, horizon).map_err(|error| error.to_string())?;
        }
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area<'_>, panel: &[Row], horizon: f64) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let Row { scenario, rate, .. } = &panel[0];
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{scenario}, {rate} requests a second"), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(40)
        .build_cartesian_2d((1.0..horizon.max(2.0)).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("% rolled back")
        .x_label_formatter(&|seconds| format!("{seconds:.0}"))
        .y_label_formatter(&|percent| format!("{percent:.0}"))
        .x_labels(5)
        .y_labels(5)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for row in panel {
        let color = color(row.rule);
        chart
            .draw_series(LineSeries::new(steps(row, horizon), color.stroke_width(2)))?
            .label(row.rule.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()
}

/// The share that was rolled back by each moment, as the corners of a line.
fn steps(row: &Row, horizon: f64) -> Vec<(f64, f64)> {
    let share = |count: usize| 100.0 * count as f64 / f64::from(row.runs.max(1));
    let mut corners = vec![(1.0, 0.0)];
    let mut count = 0;
    for together in row.rollbacks.chunk_by(|a, b| a == b) {
        let time = together[0].max(1.0);
        corners.push((time, share(count)));
        count += together.len();
        corners.push((time, share(count)));
    }
    corners.push((horizon.max(1.0), share(count)));
    corners
}

/// Colours that are told apart by whoever sees few of them (Okabe & Ito 2008).
fn color(rule: Rule) -> RGBColor {
    match rule {
        Rule::Tidegate => RGBColor(0, 114, 178),
        Rule::ByRequests => RGBColor(86, 180, 233),
        Rule::Rival(Rival::Flagger) => RGBColor(230, 159, 0),
        Rule::Rival(Rival::Argo) => RGBColor(204, 121, 167),
        Rule::Rival(Rival::Kayenta) => RGBColor(0, 158, 115),
    }
}

const COLUMNS: usize = 4;
/// Size of a panel, in pixels.
const PANEL: (u32, u32) = (360, 240);
