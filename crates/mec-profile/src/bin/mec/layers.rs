//! `mec layers`.

use std::fs;

use mec_profile::paper;
use mec_profile::report::Layers;

use crate::Failure;
use crate::args::{LayersArgs, List};
use crate::machine;
use crate::output;
use crate::plot;
use crate::table;
use crate::units::readable;

pub fn run(args: &LayersArgs) -> Result<(), Failure> {
    machine::set_threads(args.threads.map(|threads| threads.get()))?;
    let batch = args.batch.get();
    let of_the_paper = args.layers.is_none() && args.sweep.is_none();
    let layers = match (&args.layers, &args.sweep, args.list) {
        (Some(path), _, _) => {
            let name = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
            paper::parse_layers(&name, &text)?
        }
        (_, Some(layer), _) => paper::stride_sweep(&paper::layer(layer)?),
        (_, _, List::Paper) => paper::table_2(),
        (_, _, List::Catalogue) => paper::catalogue(),
    };
    let mut rows = vec![];
    for layer in &layers {
        rows.push(paper::memory(layer, batch)?);
    }
    if !args.predict && !args.formulas {
        // The paper's algorithm holds L beside its copies; im2col one image's matrix.
        let most = rows.iter().map(|row| row.lowered.max(row.im2col / batch as u64)).max();
        if let (Some(most), Some(free)) = (most, machine::free_memory())
            && most > free / 2
        {
            let (most, free) = (readable(most), readable(free));
            return Err(format!(
                "a lowered matrix takes {most}, but {free} of memory are free: give a smaller \
                 --batch, or --predict"
            )
            .into());
        }
        let bar = machine::progress(layers.len() as u64);
        for (row, layer) in rows.iter_mut().zip(&layers) {
            bar.set_message(layer.name.clone());
            row.measured = Some(paper::measurements(layer, batch)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    let resnet_101 = if of_the_paper { paper::resnet_101(&rows) } else { None };
    let layers = Layers {
        threads: rayon::current_num_threads(),
        instruction_set: mec_core::instruction_set().to_owned(),
        rows,
        resnet_101,
    };
    let units = args.output.units;
    let table = table::layers(&layers, units, args.formulas);
    let chart = || plot::layers(&layers, units, args.formulas);
    output::write(&args.output, &layers, &output::csv(None, &layers.rows)?, &table, chart)
}
