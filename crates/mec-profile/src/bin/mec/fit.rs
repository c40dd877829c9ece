//! `mec fit`.

use std::collections::BTreeMap;

use mec_profile::predict;
use mec_profile::report::{Fit, FitRow};

use crate::Failure;
use crate::args::FitArgs;
use crate::machine;
use crate::output;
use crate::plot;
use crate::profile;
use crate::table;
use crate::units::readable;

pub fn run(args: &FitArgs) -> Result<(), Failure> {
    let subject = &args.subject;
    let model = profile::model(subject)?;
    let convolutions = profile::prepare(subject)?;
    let device = if args.predict { None } else { Some(profile::device(subject)?) };
    if let Some(free) = machine::free_memory().filter(|_| !args.predict)
        && args.memory > free
    {
        let (asked, free) = (readable(args.memory), readable(free));
        return Err(format!(
            "--memory {asked} cannot be tried, since {free} are free: give less, or --predict"
        )
        .into());
    }

    let most = args.max_batch.get();
    let bar = machine::progress(convolutions.len() as u64);
    let mut rows = vec![];
    for convolution in convolutions {
        let setup = subject.setup(convolution);
        let predicted_batch = predict::largest_batch(&model, &setup, args.memory, most);
        let mut row = FitRow {
            convolution,
            predicted_batch,
            predicted_peak: match predicted_batch {
                0 => 0,
                batch => predict::step(&model, batch, &setup).peak,
            },
            measured_batch: None,
            measured_peak: None,
        };
        if let Some(device) = &device {
            let mut peaks = BTreeMap::new();
            let measured = confirm(predicted_batch, most, |batch| {
                bar.set_message(format!("{convolution} at batch {batch}"));
                let measured = profile::measure(&model, batch, &setup, device, 1)?;
                let peak = measured.device.map_or(measured.memory.peak, |device| device.reserved);
                peaks.insert(batch, peak);
                device.memory_cleanup();
                Ok(peak <= args.memory)
            })?;
            row.measured_batch = Some(measured);
            row.measured_peak = Some(peaks.get(&measured).copied().unwrap_or(0));
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let fit = Fit { subject: profile::describe(&model, subject), memory: args.memory, rows };
    let units = args.output.units;
    let table = table::fit(&fit, units);
    let chart = || plot::fit(&fit);
    output::write(&args.output, &fit, &output::csv(Some(&fit.subject), &fit.rows)?, &table, chart)
}

/// The largest batch up to `most` that `fits`, which is believed to be `guess`: steps from there
/// that double until they have gone past it, then halving.
fn confirm(
    guess: usize,
    most: usize,
    mut fits: impl FnMut(usize) -> Result<bool, Failure>,
) -> Result<usize, Failure> {
    let guess = guess.clamp(1, most);
    let mut step = 1;
    let (mut good, mut bad);
    if fits(guess)? {
        (good, bad) = (guess, most + 1);
        while good + step < bad {
            if fits(good + step)? {
                good += step;
                step *= 2;
            } else {
                bad = good + step;
            }
        }
    } else {
        (good, bad) = (0, guess);
        while bad > step {
            if fits(bad - step)? {
                good = bad - step;
                break;
            }
            bad -= step;
            step *= 2;
        }
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_confirmed_or_corrected() {
        for answer in 0..40 {
            for guess in 0..40 {
                let mut asked = 0;
                let found = confirm(guess, 39, |n| {
                    asked += 1;
                    Ok(n <= answer)
                });
                let found = found.unwrap();
                assert_eq!(found, answer, "guess {guess}");
                assert!(
                    guess != answer || guess == 0 || asked <= 2,
                    "{asked} questions for a right guess"
                );
            }
        }
    }
}
