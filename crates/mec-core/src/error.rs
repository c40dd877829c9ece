use crate::Pass;

/// Why a convolution could not be described, planned or run.
///
/// Every error is raised before any work is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A size that must be at least one is zero.
    #[error("{what} must be at least 1")]
    Zero {
        /// The option at fault, for example `stride height`.
        what: &'static str,
    },
    /// The channels of the input and of the weight disagree.
    #[error(
        "the input has {input} channels, but the weight expects {per_group} for each of {groups} groups"
    )]
    Channels {
        /// Channels of the input.
        input: usize,
        /// Input channels of the weight (those of one group).
        per_group: usize,
        /// Number of groups.
        groups: usize,
    },
    /// The output channels cannot be divided among the groups.
    #[error("{channels_out} output channels cannot be divided into {groups} groups")]
    Groups {
        /// Channels of the output.
        channels_out: usize,
        /// Number of groups.
        groups: usize,
    },
    /// The dilated kernel does not fit into the padded input.
    #[error(
        "along the {axis}, the dilated kernel spans {extent} but the padded input only {padded}"
    )]
    KernelTooLarge {
        /// `height` or `width`.
        axis: &'static str,
        /// `dilation * (kernel - 1) + 1`.
        extent: usize,
        /// `padding before + input + padding after`.
        padded: usize,
    },
    /// A tensor of this problem would have more bytes than can be addressed.
    #[error("the {what} of this convolution is larger than the address space")]
    TooLarge {
        /// The tensor or quantity at fault.
        what: &'static str,
    },
    /// A tensor handed in does not have the shape of the problem.
    #[error("the {what} has shape {got:?}, but the convolution needs {expected:?}")]
    Shape {
        /// The tensor at fault.
        what: &'static str,
        /// Shape handed in.
        got: Vec<usize>,
        /// Shape the geometry asks for.
        expected: Vec<usize>,
    },
    /// A view reaches outside the slice it reads.
    #[error(
        "a view of shape {shape:?} with strides {strides:?} reaches outside its {len} elements"
    )]
    View {
        /// Shape of the view.
        shape: [usize; 4],
        /// Strides of the view, in elements.
        strides: [isize; 4],
        /// Length of the slice.
        len: usize,
    },
    /// The workspace limit is below what the algorithm can work with.
    #[error("the {pass} needs at least {minimum} bytes of workspace, but the limit is {limit}")]
    WorkspaceLimit {
        /// The pass that was planned.
        pass: Pass,
        /// The smallest limit that would be accepted, in bytes.
        minimum: usize,
        /// The limit that was given, in bytes.
        limit: usize,
    },
    /// The algorithm does not offer this pass or this option.
    #[error("{algorithm} does not support {what}")]
    Unsupported {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// What was asked of it.
        what: &'static str,
    },
}
