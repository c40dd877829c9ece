//! The table of named problems: each falls into one trap, all are small.

use super::Problem;
use crate::ConvOptions;

/// Every named problem of the suite.
pub fn problems() -> Vec<Problem> {
    let mut table = shapes();
    table.extend(options());
    table.extend(groups());
    table.extend(blocks());
    table
}

/// Sizes at the edge of what there is.
fn shapes() -> Vec<Problem> {
    vec![
        problem("the paper's worked example", [1, 1, 7, 7], [1, 1, 3, 3]),
        problem("one of everything", [1, 1, 1, 1], [1, 1, 1, 1]),
        problem("plain 3x3", [2, 3, 8, 9], [4, 3, 3, 3]),
        problem("no bias", [2, 3, 8, 9], [4, 3, 3, 3]).no_bias(),
        problem("batch 0", [0, 3, 8, 9], [4, 3, 3, 3]),
        problem("batch 0, no bias", [0, 2, 5, 5], [3, 2, 3, 3]).same(1).no_bias(),
        problem("batch 0, 1x1", [0, 4, 3, 3], [5, 4, 1, 1]),
        problem("batch 0, depthwise", [0, 4, 6, 6], [4, 1, 3, 3]).groups(4).same(1),
        problem("non-square everything", [2, 3, 11, 17], [5, 3, 2, 5])
            .stride(3, 2)
            .pad((1, 2), (0, 3))
            .dilate(2, 1),
        problem("1x1", [2, 5, 6, 7], [9, 5, 1, 1]),
        problem("1x1, rows of whole registers", [2, 5, 12, 20], [9, 5, 1, 1]),
        problem("1x1, rows and a rest", [3, 6, 14, 14], [7, 6, 1, 1]),
        problem("1x1, groups, rows and a rest", [2, 6, 11, 9], [8, 3, 1, 1]).groups(2),
        problem("1x1, rows of one register", [1, 3, 10, 8], [4, 3, 1, 1]),
        problem("1x1, groups, rows of whole registers", [2, 6, 8, 12], [8, 3, 1, 1]).groups(2),
        problem("1x1, strided", [2, 5, 7, 8], [9, 5, 1, 1]).stride(2, 3),
        problem("1x1, padded", [2, 3, 4, 5], [6, 3, 1, 1]).same(1),
        problem("1x1, padded and strided", [2, 3, 6, 5], [4, 3, 1, 1]).same(2).stride(2, 2),
        problem("1x1, asymmetric", [1, 3, 5, 4], [4, 3, 1, 1]).pad((0, 2), (1, 0)),
        problem("1x1 on one pixel", [5, 12, 1, 1], [7, 12, 1, 1]),
        problem("1xk", [2, 3, 6, 20], [4, 3, 1, 7]).pad((0, 0), (3, 3)),
        problem("kx1", [2, 3, 20, 6], [4, 3, 7, 1]).pad((3, 3), (0, 0)),
        problem("image of one row", [2, 4, 1, 33], [3, 4, 1, 5]),
        problem("image of one column", [2, 4, 33, 1], [3, 4, 5, 1]),
        problem("image of one row, 3x3 same", [2, 3, 1, 19], [4, 3, 3, 3]).same(1),
        problem("image of one column, 3x3 same", [2, 3, 19, 1], [4, 3, 3, 3]).same(1),
        problem("image of one pixel, 3x3 same", [3, 4, 1, 1], [6, 4, 3, 3]).same(1),
        problem("image of one pixel, 5x5 same", [3, 4, 1, 1], [6, 4, 5, 5]).same(2),
        problem("kernel as large as the image", [3, 4, 6, 7], [5, 4, 6, 7]),
        problem("kernel as large as the padded image", [2, 3, 3, 4], [4, 3, 7, 8]).same(2),
        problem("kernel larger than the image", [2, 3, 2, 3], [4, 3, 5, 5]).same(2),
        problem("out_h of 1", [2, 3, 3, 12], [4, 3, 3, 3]),
        problem("out_w of 1", [2, 3, 12, 3], [4, 3, 3, 3]),
        problem("out_h of 1 by stride", [2, 3, 6, 12], [4, 3, 3, 3]).stride(9, 1),
        problem("out_w of 1 by stride", [2, 3, 12, 6], [4, 3, 3, 3]).stride(1, 9),
        problem("one input channel", [3, 1, 12, 12], [8, 1, 5, 5]).same(2),
        problem("one output channel", [3, 8, 12, 12], [1, 8, 5, 5]).same(2),
    ]
}

/// Stride, padding, dilation and how they meet.
fn options() -> Vec<Problem> {
    vec![
        problem("stride 2", [2, 3, 9, 11], [4, 3, 3, 3]).stride(2, 2),
        problem("stride 2 x 1", [2, 3, 9, 11], [4, 3, 3, 3]).stride(2, 1),
        problem("stride 1 x 2", [2, 3, 9, 11], [4, 3, 3, 3]).stride(1, 2),
        problem("stride 2, same", [2, 4, 8, 8], [5, 4, 3, 3]).stride(2, 2).same(1),
        problem("stride 2, registers and a rest of channels", [2, 19, 14, 39], [13, 19, 3, 3])
            .stride(2, 2)
            .same(1),
        problem("stride 2 x 1, registers and a rest of channels", [1, 18, 9, 20], [7, 18, 3, 3])
            .stride(2, 1)
            .same(1),
        problem("stride 2, groups, 5x5", [1, 34, 12, 13], [14, 17, 5, 5])
            .stride(2, 2)
            .same(2)
            .groups(2),
        problem("stride 4, padded", [2, 9, 21, 70], [7, 9, 9, 9]).stride(4, 4).same(3),
        problem("stride 4, 9x9, many columns", [1, 2, 13, 150], [3, 2, 9, 9]).stride(4, 4),
        problem("stride 2, 4x4, many columns", [2, 3, 9, 77], [4, 3, 4, 4]).stride(2, 2).same(1),
        problem("stride 3, 5x5", [2, 2, 17, 14], [3, 2, 5, 5]).stride(3, 3).same(2),
        problem("stride 4, 11x11", [1, 3, 35, 35], [8, 3, 11, 11]).stride(4, 4),
        problem("stride 4, 11x11, many columns", [1, 2, 15, 83], [4, 2, 11, 11]).stride(4, 4),
        problem("stride 4, 11x11, padded", [2, 2, 18, 75], [4, 2, 11, 11]).stride(4, 4).same(5),
        problem("stride 2, 7x7, padded", [2, 3, 20, 45], [6, 3, 7, 7]).stride(2, 2).same(3),
        problem("stride 2, 5x7", [1, 2, 13, 70], [5, 2, 5, 7]).stride(2, 2),
        problem("stride equal to the kernel", [2, 3, 12, 16], [6, 3, 4, 4]).stride(4, 4),
        problem("stride larger than the kernel", [2, 3, 13, 14], [4, 3, 2, 2]).stride(5, 4),
        problem("stride larger, padded", [2, 3, 11, 12], [4, 3, 2, 3]).stride(4, 5).same(1),
        problem("stride larger, 1 x 3", [2, 3, 10, 12], [4, 3, 1, 3]).stride(3, 4),
        problem("stride larger than the image", [2, 3, 5, 5], [4, 3, 3, 3]).stride(7, 8),
        problem("dropped tail, stride 2", [2, 3, 8, 10], [4, 3, 3, 3]).stride(2, 2),
        problem("dropped tail, stride 3", [2, 3, 12, 11], [4, 3, 4, 3]).stride(3, 3),
        problem("dropped tail in the padding", [2, 3, 7, 9], [4, 3, 3, 3])
            .stride(3, 4)
            .pad((0, 2), (0, 3)),
        problem("dropped tail longer than the kernel", [1, 3, 14, 15], [4, 3, 2, 2]).stride(8, 9),
        problem("even kernel", [2, 3, 8, 9], [4, 3, 2, 4]),
        problem("even kernel, same", [2, 3, 8, 9], [4, 3, 2, 4]).pad((0, 1), (1, 2)),
        problem("even kernel, same, stride 2", [2, 3, 9, 8], [4, 3, 4, 4])
            .pad((1, 2), (1, 2))
            .stride(2, 2),
        problem("asymmetric padding", [2, 3, 7, 8], [4, 3, 3, 3]).pad((0, 2), (3, 1)),
        problem("padding on one side", [2, 3, 7, 8], [4, 3, 3, 3]).pad((2, 0), (0, 2)),
        problem("padding larger than the kernel", [2, 2, 4, 5], [3, 2, 3, 2]).pad((5, 4), (6, 7)),
        problem("padding larger than kernel and image", [1, 2, 2, 2], [3, 2, 2, 2]).same(6),
        problem("large padding, stride 3", [1, 2, 4, 3], [3, 2, 3, 3]).same(7).stride(3, 3),
        problem("large padding, dilated", [1, 2, 4, 3], [3, 2, 3, 3]).same(7).dilate(2, 3),
        problem("dilation 2", [2, 3, 10, 11], [4, 3, 3, 3]).dilate(2, 2),
        problem("dilation 2, same", [2, 3, 10, 11], [4, 3, 3, 3]).dilate(2, 2).same(2),
        problem("dilation 1 x 3", [2, 3, 8, 13], [4, 3, 3, 3]).dilate(1, 3),
        problem("dilation 3 x 1", [2, 3, 13, 8], [4, 3, 3, 3]).dilate(3, 1),
        problem("dilation of one kernel element", [2, 3, 7, 8], [4, 3, 1, 1]).dilate(5, 6),
        problem("dilated as large as the image", [2, 3, 9, 7], [4, 3, 3, 3]).dilate(4, 3),
        problem("dilation 2, many columns", [2, 3, 9, 79], [4, 3, 3, 3]).dilate(2, 2).same(2),
        problem("dilation 2, stride 2", [2, 3, 13, 14], [4, 3, 3, 3]).dilate(2, 2).stride(2, 2),
        problem("dilation 4, stride 2", [2, 2, 17, 18], [3, 2, 3, 3]).dilate(4, 4).stride(2, 2),
        problem("dilation 2, stride 4", [2, 2, 17, 18], [3, 2, 3, 3]).dilate(2, 2).stride(4, 4),
        problem("dilation 4, stride 6", [1, 2, 25, 26], [3, 2, 4, 3]).dilate(4, 4).stride(6, 6),
        problem("dilation 2, stride 3", [2, 3, 14, 15], [4, 3, 3, 3]).dilate(2, 2).stride(3, 3),
        problem("dilation 3, stride 2", [2, 3, 16, 15], [4, 3, 3, 3]).dilate(3, 3).stride(2, 2),
        problem("dilation 3, stride 2, same", [2, 3, 9, 10], [4, 3, 3, 3])
            .dilate(3, 3)
            .stride(2, 2)
            .same(3),
        // Two and three input channels whose gradient is wide enough to be summed straight from `dy`.
        problem("3 channels, wide rows", [1, 3, 19, 101], [4, 3, 5, 3]).pad((1, 2), (0, 1)),
        problem("3 channels, wide rows, stride 2", [1, 3, 23, 131], [4, 3, 7, 7])
            .stride(2, 2)
            .same(3),
        problem("3 channels, wide rows, stride 1 x 2", [2, 3, 18, 120], [3, 3, 2, 4]).stride(1, 2),
        problem("3 channels, wide rows, groups, dilated", [1, 6, 20, 90], [4, 3, 3, 3])
            .groups(2)
            .dilate(2, 3)
            .same(2),
        problem("2 channels, wide rows, dilation 3, stride 2", [2, 2, 16, 150], [3, 2, 3, 3])
            .dilate(3, 3)
            .stride(2, 2)
            .same(3),
        problem("1 channel, wide rows, stride 2, padded by more", [1, 1, 9, 170], [3, 1, 3, 3])
            .stride(2, 2)
            .same(5),
        problem("dilation and stride differ by axis", [2, 3, 15, 16], [4, 3, 3, 2])
            .dilate(2, 3)
            .stride(3, 2)
            .pad((1, 0), (2, 3)),
    ]
}

/// Channels in blocks.
fn groups() -> Vec<Problem> {
    let mut table = vec![
        problem("2 groups", [2, 6, 7, 8], [8, 3, 3, 3]).groups(2),
        problem("3 groups, more in than out", [2, 12, 7, 6], [3, 4, 3, 3]).groups(3),
        problem("groups, strided, padded, dilated", [2, 6, 11, 12], [9, 2, 3, 3])
            .groups(3)
            .stride(2, 3)
            .dilate(2, 1)
            .pad((2, 1), (0, 1)),
        problem("groups, 1x1", [2, 12, 5, 6], [8, 3, 1, 1]).groups(4),
        problem("depthwise", [2, 9, 8, 10], [9, 1, 3, 3]).groups(9),
        problem("depthwise, same", [2, 16, 9, 9], [16, 1, 3, 3]).groups(16).same(1),
        problem("depthwise, stride 2", [2, 5, 9, 10], [5, 1, 3, 3]).groups(5).same(1).stride(2, 2),
        problem("depthwise, 5x5, dilated", [1, 6, 14, 15], [6, 1, 5, 5])
            .groups(6)
            .same(4)
            .dilate(2, 2),
        problem("depthwise, stride 3, dilation 2", [1, 4, 15, 16], [4, 1, 3, 3])
            .groups(4)
            .stride(3, 3)
            .dilate(2, 2)
            .pad((2, 1), (0, 3)),
        problem("depthwise, 1x1", [2, 7, 5, 6], [7, 1, 1, 1]).groups(7),
        problem("depthwise, kernel as large as the image", [2, 6, 5, 5], [6, 1, 5, 5]).groups(6),
        problem("depthwise, several bands", [1, 2, 37, 21], [2, 1, 3, 3]).groups(2).same(1),
        problem("depthwise, dilated columns", [1, 2, 20, 60], [2, 1, 3, 3])
            .groups(2)
            .dilate(1, 7)
            .pad((0, 1), (9, 3)),
        problem("depthwise, wide rows", [1, 3, 4, 150], [3, 1, 3, 3]).groups(3).same(1),
        problem("depthwise, stride 5 and 2, 6x5", [2, 3, 23, 18], [3, 1, 6, 5])
            .groups(3)
            .stride(5, 2)
            .pad((2, 3), (1, 0)),
        problem("depthwise, stride 2, odd columns, padded by 2", [2, 3, 14, 37], [3, 1, 3, 3])
            .groups(3)
            .same(2)
            .stride(2, 2),
        problem("depthwise, stride 2, asymmetric, small planes", [3, 40, 7, 14], [40, 1, 3, 3])
            .groups(40)
            .pad((0, 1), (1, 0))
            .stride(2, 2),
        problem(
            "depthwise, stride 2, padded by more, a large plane",
            [1, 2, 100, 90],
            [2, 1, 3, 3],
        )
        .groups(2)
        .pad((3, 1), (4, 6))
        .stride(2, 2),
        problem("depthwise, 5x5, stride 2, several planes together", [3, 20, 9, 11], [20, 1, 5, 5])
            .groups(20)
            .same(2)
            .stride(2, 2),
        problem("depthwise, 5x5, several planes together", [2, 21, 8, 7], [21, 1, 5, 5])
            .groups(21)
            .same(2),
        problem("depthwise, 5x5, a large plane", [1, 2, 50, 41], [2, 1, 5, 5]).groups(2).same(2),
        problem("depthwise, 5x5, dilated, several planes together", [2, 21, 10, 9], [21, 1, 5, 5])
            .groups(21)
            .same(4)
            .dilate(2, 2),
        problem("depthwise, 5x5, stride 2, padded by 1, odd columns", [2, 3, 14, 37], [3, 1, 5, 5])
            .groups(3)
            .same(1)
            .stride(2, 2),
        problem("depthwise, 5x5, stride 2, padded by 1 and 2", [2, 3, 13, 22], [3, 1, 5, 5])
            .groups(3)
            .pad((1, 2), (2, 1))
            .stride(2, 2),
        problem("depthwise, 5x5, stride 2, a large plane", [1, 2, 90, 95], [2, 1, 5, 5])
            .groups(2)
            .same(2)
            .stride(2, 2),
        problem("depthwise, 7x7", [2, 11, 9, 20], [11, 1, 7, 7]).groups(11).same(3),
        problem("depthwise, 7x7, stride 2", [2, 5, 15, 18], [5, 1, 7, 7])
            .groups(5)
            .same(3)
            .stride(2, 2),
        problem("depthwise, stride 2, no padding, small planes", [3, 40, 7, 14], [40, 1, 3, 3])
            .groups(40)
            .stride(2, 2),
        problem("depthwise, stride 2, pieces of rows", [1, 2, 5, 4300], [2, 1, 3, 3])
            .groups(2)
            .same(1)
            .stride(2, 2),
        problem("depthwise, stride 2, several bands", [2, 2, 65, 140], [2, 1, 3, 3])
            .groups(2)
            .same(1)
            .stride(2, 2),
        problem("depthwise, channel multiplier 2", [2, 5, 8, 8], [10, 1, 3, 3]).groups(5).same(1),
        problem("depthwise, channel multiplier 3", [1, 4, 9, 8], [12, 1, 3, 3])
            .groups(4)
            .stride(2, 2),
        problem("one channel to many, one band", [2, 1, 16, 130], [9, 1, 3, 3]).same(1),
        problem("one channel to many, parted planes", [2, 1, 48, 50], [9, 1, 3, 3]).same(1),
        problem("depthwise, one band", [1, 2, 16, 130], [2, 1, 3, 3]).groups(2).same(1),
        problem("depthwise, large planes or parted", [3, 3, 48, 45], [3, 1, 3, 3])
            .groups(3)
            .same(1),
        problem("depthwise, large planes", [2, 3, 40, 61], [3, 1, 3, 3]).groups(3).same(1),
        problem("depthwise, large narrow planes", [1, 3, 350, 5], [3, 1, 3, 3]).groups(3).same(1),
        problem("one channel to many, narrow rows", [3, 1, 9, 5], [6, 1, 3, 3]).same(1),
        problem("one output channel a group", [2, 12, 7, 7], [4, 3, 3, 3]).groups(4).same(1),
    ];
    // Widths of a group around those of SIMD registers, where a block could reach into the next
    // group.
    for width in [7, 8, 9, 16, 17] {
        let name = format!("3 groups of {width} channels");
        let grouped = problem(&name, [2, 3 * width, 6, 7], [3 * width, width, 3, 3]);
        table.push(grouped.groups(3).same(1));
        let name = format!("2 groups of 3 to {width} channels");
        table.push(problem(&name, [2, 6, 6, 7], [2 * width, 3, 3, 3]).groups(2));
    }
    table
}

/// Sizes around those that kernels divide their work by.
fn blocks() -> Vec<Problem> {
    let mut table = vec![
        problem("many small images", [67, 3, 3, 3], [5, 3, 3, 3]).same(1),
        problem("many images of one pixel", [130, 9, 1, 1], [10, 9, 1, 1]),
        problem("many images of one output", [50, 4, 3, 3], [9, 4, 3, 3]),
        problem("wide rows", [1, 2, 3, 500], [3, 2, 3, 3]).same(1),
        problem("wide rows, strided", [1, 2, 5, 500], [3, 2, 3, 3]).stride(2, 2),
        problem("tall columns", [1, 2, 500, 3], [3, 2, 3, 3]).same(1),
        problem("channels 300 to 20 on one pixel", [1, 300, 3, 3], [20, 300, 3, 3]),
        problem("channels 300 to 20 on 3 pixels", [1, 300, 3, 5], [20, 300, 3, 3]),
        problem("channels 20 to 300 on 2 pixels", [1, 20, 3, 4], [300, 20, 3, 3]),
        problem("channels 270 to 33, 1x1", [3, 270, 1, 1], [33, 270, 1, 1]),
        problem("channels 260 to 9, strided", [1, 260, 5, 4], [9, 260, 3, 2]).stride(2, 2).same(1),
        problem("channels 600 to 17, 2x2", [1, 600, 3, 2], [17, 600, 2, 2]),
        problem("channels 1030 to 3", [1, 1030, 2, 2], [3, 1030, 1, 2]),
        // Streams of output whose channels begin differently in a line, and rows of a strip's width with a rest.
        problem("few channels, planes alike by fours", [2, 3, 24, 24], [37, 3, 3, 3]),
        problem("few channels, planes alike by twos, groups", [2, 4, 14, 12], [70, 2, 3, 3])
            .groups(2)
            .same(1),
        problem("1x1, many rows of a strip's width", [2, 9, 29, 30], [11, 9, 1, 1]),
        // So few positions that the elements of a sum lie in the lanes: several blocks, groups, every way to pack.
        problem("few positions, blocks of channels", [1, 150, 2, 2], [19, 150, 3, 3]).same(1),
        problem("few positions, groups", [2, 80, 3, 3], [26, 40, 3, 3]).groups(2),
        problem("few positions, dilated and strided", [1, 40, 7, 9], [24, 40, 2, 3])
            .dilate(3, 2)
            .stride(2, 3)
            .pad((1, 0), (0, 2)),
        problem("few positions, 7x7", [2, 20, 7, 7], [16, 20, 7, 7]),
        problem("few positions, 5x4", [1, 24, 5, 5], [33, 24, 5, 4]),
        problem("few positions, 1x1 in groups", [2, 300, 1, 2], [40, 150, 1, 1]).groups(2),
        problem("few positions, 1x1 strided", [1, 130, 5, 4], [18, 130, 1, 1]).stride(3, 3),
        problem("few positions, 1x1 padded", [1, 130, 1, 1], [18, 130, 1, 1]).same(1),
        problem("few positions, 1x1 on 7 x 7", [1, 640, 7, 7], [70, 640, 1, 1]),
        // Images that fit a register badly: their input gradient is summed in blocks of channels.
        problem("channels 5 to 400, small images", [3, 5, 12, 11], [400, 5, 3, 3]),
        problem("channels 400 to 5, padded by 2", [2, 400, 9, 10], [5, 400, 3, 3]).same(2),
        // The same of larger kernels, of which no piece reaches all of it.
        problem("5x5, padded by 4", [3, 9, 7, 8], [11, 9, 5, 5]).same(4),
        problem("5x5, channels 6 to 150, groups", [2, 12, 10, 12], [300, 6, 5, 5]).groups(2),
        problem("7x4, padded by 1 and 0", [2, 5, 13, 11], [17, 5, 7, 4]).pad((1, 0), (0, 1)),
        problem("channels 2 to 420, strided", [1, 2, 17, 17], [420, 2, 5, 5]).stride(2, 2),
        // Panels of consecutive positions: of rows, of columns, of images, in blocks of channels.
        problem("few channels, several panels of rows", [2, 2, 37, 33], [7, 2, 3, 3]).same(1),
        problem("few channels, several panels of columns", [1, 1, 3, 2100], [4, 1, 3, 3]).same(1),
        problem("few channels, groups", [2, 2, 9, 11], [8, 1, 3, 3]).groups(2),
        problem("few channels, dilated", [2, 1, 16, 45], [7, 1, 3, 2]).dilate(2, 3).same(2),
        problem("few channels, images in a panel", [40, 1, 3, 3], [6, 1, 3, 3]).same(1),
        problem("1x1, several panels of a plane", [2, 3, 40, 37], [5, 3, 1, 1]),
        problem("1x1, images in a panel", [60, 6, 3, 3], [70, 6, 1, 1]),
        problem("1x1, channels 200 to 70", [3, 200, 5, 5], [70, 200, 1, 1]),
        problem("a layer of a model", [2, 24, 14, 14], [24, 24, 3, 3]).same(1),
        problem("a strided layer of a model", [2, 20, 15, 15], [40, 20, 3, 3]).same(1).stride(2, 2),
    ];
    for columns in [7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 97] {
        let name = format!("{columns} columns");
        table.push(problem(&name, [1, 2, 4, columns + 2], [3, 2, 3, 3]));
    }
    for columns in [7, 16, 49] {
        let name = format!("{columns} columns, 1x1");
        table.push(problem(&name, [1, 3, 1, columns], [5, 3, 1, 1]));
        let name = format!("{columns} columns, stride 2");
        table.push(problem(&name, [1, 2, 5, 2 * columns + 1], [3, 2, 3, 3]).stride(2, 2));
        let name = format!("{columns} columns of 3 images");
        table.push(problem(&name, [3, 2, 4, columns], [3, 2, 3, 3]).same(1));
    }
    for channels in [7, 8, 9, 15, 16, 17, 24, 25, 33] {
        let name = format!("3 to {channels} channels");
        table.push(problem(&name, [1, 3, 5, 7], [channels, 3, 3, 3]));
        let name = format!("{channels} to 3 channels");
        table.push(problem(&name, [1, channels, 5, 7], [3, channels, 3, 3]));
    }
    table
}

/// Stride 1, no padding, with a bias; the methods below change that.
fn problem(name: &str, input: [usize; 4], weight: [usize; 4]) -> Problem {
    Problem { name: name.into(), input, weight, options: ConvOptions::default(), bias: true }
}

impl Problem {
    fn stride(mut self, height: usize, width: usize) -> Self {
        self.options.stride = [height, width];
        self
    }

    fn pad(mut self, height: (usize, usize), width: (usize, usize)) -> Self {
        self.options.padding = [height, width];
        self
    }

    /// The same padding on all four sides.
    fn same(self, padding: usize) -> Self {
        self.pad((padding, padding), (padding, padding))
    }

    fn dilate(mut self, height: usize, width: usize) -> Self {
        self.options.dilation = [height, width];
        self
    }

    fn groups(mut self, groups: usize) -> Self {
        self.options.groups = groups;
        self
    }

    fn no_bias(mut self) -> Self {
        self.bias = false;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_valid_and_small() {
        let table = problems();
        let mut names: Vec<_> = table.iter().map(|p| &p.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), table.len(), "names are unique");
        for problem in &table {
            let flops = problem.geometry().flops();
            assert!(flops <= 10_000_000, "{problem:?} takes {flops} operations");
        }
    }
}
