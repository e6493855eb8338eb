// Sizes of one convolution, the same for its three products.
//
//     X [c][h][w][n]   W [k][c][r][s]   Y [k][out_h][out_w][n]        (samples innermost, float32)
//     Y(k,p,q) = sum over c,r,s of W(k,c,r,s) * X(c, p*stride_h + r*dilation_h - pad_h,
//                                                          q*stride_w + s*dilation_w - pad_w)
#pragma once
#include <cstdint>

namespace torchswat {

struct bf16 {  // the upper half of a float32
    uint16_t bits;
};

struct ConvShape {
    int n, c, h, w;        // samples, input channels, height and width of the input
    int k, r, s;           // filters, height and width of the kernel
    int stride_h, stride_w, pad_h, pad_w;
    int out_h, out_w;      // height and width of the output
    int dilation_h = 1, dilation_w = 1;  // of the products with sparse weights; the others take 1 alone
    int outside = 0;  // of products of bytes (fours.h): what a byte beyond an edge is

    int64_t input_map() const { return int64_t(h) * w * n; }           // floats of one input channel
    int64_t output_map() const { return int64_t(out_h) * out_w * n; }  // floats of one output channel
    int64_t weights() const { return int64_t(k) * c * r * s; }
};

}  // namespace torchswat
