//! Writing the generic routines out for one instruction set: once compiled with its features, they are its own.

/// Writes out the generic routines for one instruction set and gathers them in its `TABLE`.
macro_rules! stamp {
    ($lanes:ty, $blocks:ty, $wide:literal, $vectors:literal, $tall:literal,
     $tokens:literal, $rows:literal $(, $features:literal)?) => {
        mod stamped {
            #![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, unused_imports)]
            use super::super::attention::{self, Page, Query, State};
            use super::super::floats::{self, Epilogue};
            use super::super::grouped::{self, GroupedJob};
            use super::super::halves::{self, HalvesJob};
            use super::super::scores::{self, BINS, Bounds, Cut, NoisyJob};
            use super::super::Quantised;
            use super::*;
            type Lane = $lanes;

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn finish(sums: *const i32, job: &Epilogue<'_>) {
                floats::finish::<Lane>(sums, job);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn grouped(job: &GroupedJob, epilogue: &Epilogue<'_>) {
                grouped::product::<$blocks>(job);
                floats::finish_floats::<Lane>(job.sums, epilogue);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                floats::norm::<Lane>(x, weight, eps, out);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn norm_quantise(
                x: &[f32],
                norm: Option<(&[f32], f32)>,
                group: usize,
                row: &mut [f32],
                acts: &mut [i8],
                quantised: &mut [Quantised],
            ) {
                floats::norm_quantise::<Lane>(x, norm, group, row, acts, quantised);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
                floats::rotate::<Lane>(head, cos, sin);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn narrow(from: &[f32], to: &mut [u16]) {
                floats::narrow::<Lane>(from, to);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn widen(from: &[u16], to: &mut [f32]) {
                floats::widen::<Lane>(from, to);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn scale_sums(sums: &[i32], scales: &[f32], step: f32, out: &mut [f32]) {
                scores::scale_sums::<Lane>(sums, scales, step, out);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn unpack_six(from: &[u8], to: &mut [u8]) {
                scores::unpack_six(from, to);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn reach(bounds: &Bounds<'_>, sign: f32, threshold: f32, hits: &mut Vec<u32>) {
                scores::reach::<Lane>(bounds, sign, threshold, hits);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn noisy(job: &NoisyJob<'_>, hits: &mut Vec<u32>) {
                scores::noisy::<Lane>(job, hits);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn weigh(scores: &[f32], cut: Cut, bins: &mut [u64; BINS]) {
                scores::weigh::<Lane>(scores, cut, bins);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn largest(x: &[f32]) -> f32 {
                scores::largest::<Lane>(x)
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn exp_sum(x: &[f32], highest: f32) -> f64 {
                scores::exp_sum::<Lane>(x, highest)
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn attend(queries: &mut [Query<'_>], page: &Page<u16>, scale: f32) {
                attention::attend::<Lane, u16, $wide, $vectors, $tall>(queries, page, scale);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn attend_bytes(queries: &mut [Query<'_>], page: &Page<i8>, scale: f32) {
                attention::attend::<Lane, i8, $wide, $vectors, $tall>(queries, page, scale);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn narrow_bytes(from: &[f32], to: &mut [i8]) -> f32 {
                floats::narrow_bytes::<Lane>(from, to)
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn fold(state: &mut State, page: &State, head_dim: usize) {
                attention::fold::<Lane>(state, page.maximum, page.sum, &page.values[..head_dim]);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn attended(state: &State, out: &mut [f32]) {
                attention::finish::<Lane>(state, out);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn dot_f16(row: *const u16, x: *const f32, n: usize) -> f32 {
                floats::dot_f16::<Lane>(row, x, n)
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn dot_f32(row: *const f32, x: *const f32, n: usize) -> f32 {
                floats::dot_f32::<Lane>(row, x, n)
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn dots_f16(job: &mut HalvesJob<'_>) {
                halves::dots::<Lane, $tokens, $rows>(job);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn round_i16(x: &[f32], step: f32, out: &mut [i16], error: &mut [f32]) {
                floats::round_i16::<Lane>(x, step, out, error);
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn largest_magnitude(x: &[f32]) -> f32 {
                floats::largest_magnitude::<Lane>(x)
            }
        }

        pub(super) static TABLE: super::Table = super::Table {
            ternary,
            tabulate,
            look_up,
            screen,
            screen_narrow,
            screen_six,
            read_all,
            multiply_all,
            finish: stamped::finish,
            grouped: stamped::grouped,
            norm: stamped::norm,
            norm_quantise: stamped::norm_quantise,
            rotate: stamped::rotate,
            narrow: stamped::narrow,
            attend: stamped::attend,
            attend_bytes: stamped::attend_bytes,
            narrow_bytes: stamped::narrow_bytes,
            fold: stamped::fold,
            attended: stamped::attended,
            widen: stamped::widen,
            scale_sums: stamped::scale_sums,
            unpack_six: stamped::unpack_six,
            reach: stamped::reach,
            noisy: stamped::noisy,
            weigh: stamped::weigh,
            largest: stamped::largest,
            exp_sum: stamped::exp_sum,
            dot_f16: stamped::dot_f16,
            dot_f32: stamped::dot_f32,
            dots_f16: stamped::dots_f16,
            round_i16: stamped::round_i16,
            largest_magnitude: stamped::largest_magnitude,
        };
    };
}
pub(super) use stamp;
