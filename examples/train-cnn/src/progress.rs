//! What the learner tells while it trains: plain lines where there is no terminal for burn-train's
//! dashboard, and the time that each epoch took.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId, MetricName};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

/// Prints a line at each quarter of an epoch's training, and one at the end of each split, with the
/// metrics over the epoch so far.
pub struct PlainLines {
    epoch: usize,
    epochs: usize,
    split: String,
    total: usize,
    done: usize,
    started: Instant,
    /// Metrics by id, with the latest text of each.
    metrics: Vec<(MetricId, MetricName, String)>,
}

impl PlainLines {
    pub fn new() -> Self {
        Self {
            epoch: 1,
            epochs: 0,
            split: String::new(),
            total: 0,
            done: 0,
            started: Instant::now(),
            metrics: vec![],
        }
    }

    fn update(&mut self, state: MetricState) {
        let (MetricState::Numeric(entry, _) | MetricState::Generic(entry)) = state;
        for (id, _, text) in &mut self.metrics {
            if *id == entry.metric_id {
                // "epoch 0.53 - batch 0.41": the mean over the epoch so far, then the last batch.
                let formatted = &entry.serialized_entry.formatted;
                let epoch = formatted.split(" - ").next().unwrap_or(formatted);
                *text = epoch.trim_start_matches("epoch ").to_owned();
            }
        }
    }

    fn print(&self) {
        let Self { epoch, epochs, split, done, total, .. } = self;
        let metrics: String =
            self.metrics.iter().map(|(_, name, text)| format!("   {name}: {text}")).collect();
        let seconds = self.started.elapsed().as_secs_f64();
        println!("epoch {epoch}/{epochs}   {split} {done:>5}/{total}{metrics}   {seconds:.1} s");
    }
}

impl TrainingProgressLogger for PlainLines {
    fn start(&mut self, epochs: usize, first: usize, _items: Option<usize>, _label: Option<&str>) {
        (self.epoch, self.epochs) = (first, epochs);
    }

    fn start_split(&mut self, split: &str, total: usize) {
        (self.split, self.total, self.done) = (split.to_owned(), total, 0);
        self.started = Instant::now();
    }

    fn update_split(&mut self, done: usize) {
        let quarter = |items: usize| items * 4 / self.total.max(1);
        // The end of a split has a line of its own.
        let print =
            self.split == "train" && quarter(done) > quarter(self.done) && done < self.total;
        self.done = done;
        if print {
            self.print();
        }
    }

    fn end_split(&mut self) {
        self.print();
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.epoch = epoch + 1;
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

impl MetricsRendererTraining for PlainLines {
    fn update_train(&mut self, state: MetricState) {
        self.update(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.update(state);
    }
}

impl MetricsRenderer for PlainLines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, metric: MetricDefinition) {
        if self.metrics.iter().all(|(id, _, _)| *id != metric.metric_id) {
            self.metrics.push((metric.metric_id, metric.name, String::new()));
        }
    }
}

// A renderer has to be one for evaluation too; the example trains only.
impl MetricsRendererEvaluation for PlainLines {
    fn update_test(&mut self, _name: EvaluationName, state: MetricState) {
        self.update(state);
    }
}

impl EvaluationProgressLogger for PlainLines {
    fn start_global_progress(&mut self, _tests: usize) {}

    fn start_test(&mut self, name: &str, total: usize) {
        self.start_split(name, total);
    }

    fn update_test_progress(&mut self, done: usize) {
        self.update_split(done);
    }

    fn end_test(&mut self) {
        self.end_split();
    }

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _event: String) {}
}

/// Takes the time that each epoch spends on the training images.
#[derive(Clone, Default)]
pub struct EpochClock {
    started: Option<Instant>,
    items_left: usize,
    items: usize,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl EpochClock {
    /// The times of the whole epochs so far; a clone of the clock that the learner has sees them too.
    pub fn times(&self) -> Vec<Duration> {
        self.times.lock().expect("no holder of this lock panics").clone()
    }
}

impl TrainingProgressLogger for EpochClock {
    fn start_split(&mut self, split: &str, items: usize) {
        self.started = (split == "train").then(Instant::now);
        (self.items, self.items_left) = (items, items);
    }

    fn update_split(&mut self, done: usize) {
        self.items_left = self.items.saturating_sub(done);
    }

    fn end_split(&mut self) {
        // An interrupted epoch says nothing about how long one takes.
        if let Some(start) = self.started.take()
            && self.items_left == 0
        {
            self.times.lock().expect("no holder of this lock panics").push(start.elapsed());
        }
    }

    fn start(&mut self, _epochs: usize, _first: usize, _items: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _epoch: usize) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _event: String) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_takes_the_time_of_whole_training_epochs_only() {
        let clock = EpochClock::default();
        let mut given_away = clock.clone();
        for (split, done) in [("train", 10), ("valid", 10), ("train", 7), ("train", 10)] {
            given_away.start_split(split, 10);
            given_away.update_split(done);
            given_away.end_split();
        }
        assert_eq!(clock.times().len(), 2);
    }
}
