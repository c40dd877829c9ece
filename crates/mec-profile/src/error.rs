use serde::de::DeserializeOwned;

/// Why something could not be profiled. Each is one sentence for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No network of this name is built in.
    #[error("there is no model {name:?}; built in are {names}")]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        names: String,
    },
    /// No layer of this name is in the list.
    #[error("there is no layer {name:?}; there are {names}")]
    UnknownLayer {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        names: String,
    },
    /// The layers of a network do not fit together.
    #[error("layer {number} of {name}: {reason}")]
    Model {
        /// The network.
        name: String,
        /// The layer, counted from 1; 0 is the input.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer of a list is not a convolution.
    #[error("layer {name} at batch {batch}: {reason}")]
    Layer {
        /// The layer.
        name: String,
        /// Images.
        batch: usize,
        /// What is wrong with it.
        reason: mec_core::Error,
    },
    /// A file is not what it should be.
    #[error("{file}, line {line}: {reason}")]
    File {
        /// The file.
        file: String,
        /// Where in it, counted from 1.
        line: usize,
        /// What is wrong, with the field at fault.
        reason: String,
    },
}

/// Reads the text of a TOML file; `origin` names it in the error.
pub(crate) fn toml_file<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
        Error::File {
            file: origin.to_owned(),
            line: 1 + before.matches('\n').count(),
            reason: error.message().replace('\n', ", "),
        }
    })
}
