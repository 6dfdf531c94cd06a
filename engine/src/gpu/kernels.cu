// The operations of a forward step for an NVIDIA GPU, with the bits of the kernels for CPUs.
//
// Compiled to PTX by clang without a CUDA toolkit (`make ptx`); the result, kernels.ptx, is committed beside this file and
// compiled for the card at hand by its driver. Nothing here depends on a compiler's flags: every float operation is one
// instruction with its rounding written out. Sums of floats are in the order that engine/README.md defines: sixteen lanes by
// fused multiply-add and a fixed tree, dimensions and positions of attention in ascending order, pages folded in order.
// Sums of products of weights are integers, so their order is free. Widths are multiples of 128, heads of 16.
//
// Called by gpu.rs; the interpreter of gpu/interpreter.rs runs the same PTX in tests.

#define DEVICE static __attribute__((device)) inline __attribute__((always_inline))
#define KERNEL(threads) extern "C" __attribute__((global)) __attribute__((launch_bounds(threads))) void
#define SHARED __attribute__((shared))
#define THREAD __nvvm_read_ptx_sreg_tid_x()
#define BLOCK_X __nvvm_read_ptx_sreg_ctaid_x()
#define BLOCK_Y __nvvm_read_ptx_sreg_ctaid_y()
#define BLOCK_Z __nvvm_read_ptx_sreg_ctaid_z()
// Not __syncthreads(): clang 14 takes that for a function that knows no variable of this file, and moves loads of shared ones across.
#define BARRIER() asm volatile("bar.sync 0;" ::: "memory")

typedef unsigned short half;
typedef unsigned long long u64;

// A row of int8 activations, as kernel.rs has it.
struct Quantised {
    float scale;
    float step;
    int sum;
};

struct alignas(16) Four {
    unsigned x, y, z, w;
};
struct alignas(16) FourFloats {
    float x, y, z, w;
};

// Positions of a page, and those whose keys stand together.
constexpr unsigned PAGE = 128, KEY_BLOCK = 32;
constexpr unsigned MAX_HEAD_DIM = 256;
// Query heads that a block of `attend` takes together.
constexpr unsigned TOGETHER = 4;
// Warps that share the inputs of a product.
constexpr unsigned WARPS = 8;

DEVICE float add(float a, float b) {
    float r;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float sub(float a, float b) {
    float r;
    asm("sub.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float mul(float a, float b) {
    float r;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float quotient(float a, float b) {
    float r;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float root(float a) {
    float r;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
// a · b + c, rounded once.
DEVICE float fma(float a, float b, float c) {
    float r;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
}
// To the nearest integer, ties to even.
DEVICE float nearest(float a) {
    float r;
    asm("cvt.rni.f32.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
DEVICE float magnitude(float a) { return __builtin_bit_cast(float, __builtin_bit_cast(unsigned, a) & 0x7fffffffu); }
DEVICE float larger(float a, float b) {
    float r;
    asm("max.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float smaller(float a, float b) {
    float r;
    asm("min.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE int truncated(float a) {
    int r;
    asm("cvt.rzi.s32.f32 %0, %1;" : "=r"(r) : "f"(a));
    return r;
}
DEVICE float from_int(int a) {
    float r;
    asm("cvt.rn.f32.s32 %0, %1;" : "=f"(r) : "r"(a));
    return r;
}
DEVICE float widen(half a) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(a));
    return r;
}
// Magnitudes above 65504 become 65504: what is stored is always finite.
DEVICE half narrow(float a) {
    half r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(smaller(larger(a, -65504.0f), 65504.0f)));
    return r;
}
// The value of the thread whose number in the warp differs in one bit.
DEVICE float other(float a, unsigned bit) {
    float r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(r) : "f"(a), "r"(bit));
    return r;
}
DEVICE int other_int(int a, unsigned bit) {
    int r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(r) : "r"(a), "r"(bit));
    return r;
}
// The fixed tree over sixteen lanes: i with i + 8, then 4, 2 and 1. Both halves of a warp do it, each by itself.
DEVICE float tree(float lane) {
    lane = add(lane, other(lane, 8));
    lane = add(lane, other(lane, 4));
    lane = add(lane, other(lane, 2));
    return add(lane, other(lane, 1));
}

// e to the power of x: `exp` of kernel/lanes.rs.
DEVICE float exponential(float x) {
    const float lowest = -87.3f;
    float clamped = smaller(larger(x, lowest), 88.0f);
    float n = nearest(mul(clamped, 1.44269504088896340736f));
    float r = fma(n, -0.693359375f, clamped);
    r = fma(n, 2.12194440e-4f, r);
    float p = 1.98756915e-4f;
    p = fma(p, r, 1.39819995e-3f);
    p = fma(p, r, 8.33345191e-3f);
    p = fma(p, r, 4.16657959e-2f);
    p = fma(p, r, 1.66666655e-1f);
    p = fma(p, r, 5.00000012e-1f);
    float y = add(fma(p, mul(r, r), r), 1.0f);
    float power = __builtin_bit_cast(float, (unsigned)(truncated(n) + 127) << 23);
    return x < lowest ? 0.0f : mul(y, power);
}

// x (n_columns, hidden) = rows of the embedding, (vocab, hidden).
KERNEL(256) embed(float *x, const half *table, const unsigned *tokens, unsigned hidden) {
    const half *row = table + (u64)tokens[BLOCK_X] * hidden;
    float *out = x + (u64)BLOCK_X * hidden;
    for (unsigned i = THREAD; i < hidden; i += 256) out[i] = widen(row[i]);
}

// to (n_rows, width) = the rows of `from` that `columns` names.
KERNEL(256) keep_rows(const float *from, float *to, const unsigned *columns, unsigned width) {
    const float *row = from + (u64)columns[BLOCK_X] * width;
    float *out = to + (u64)BLOCK_X * width;
    for (unsigned i = THREAD; i < width; i += 256) out[i] = row[i];
}

// What a row is multiplied by in its RMS norm: every thread of the block is told. The first warp computes it, both of its
// halves the same.
DEVICE float norm_scale(const float *row, float eps, unsigned width, float *shared) {
    if (THREAD < 32) {
        const float *lane = row + (THREAD & 15);
        float sum = 0.0f;
        for (unsigned i = 0; i < width; i += 128) {
            float v[8];
#pragma unroll
            for (unsigned k = 0; k < 8; k++) v[k] = lane[i + 16 * k];
#pragma unroll
            for (unsigned k = 0; k < 8; k++) sum = fma(v[k], v[k], sum);
        }
        sum = tree(sum);
        float mean = quotient(sum, from_int((int)width));
        if (THREAD == 0) *shared = quotient(1.0f, root(add(mean, eps)));
    }
    BARRIER();
    return *shared;
}

// out (n_rows, width) = RMS norm of `from`.
KERNEL(256) norm_rows(const float *from, const float *weight, float eps, unsigned width, float *out) {
    SHARED float shared;
    const float *row = from + (u64)BLOCK_X * width;
    float scale = norm_scale(row, eps, width, &shared);
    float *to = out + (u64)BLOCK_X * width;
    for (unsigned i = THREAD; i < width; i += 256) to[i] = mul(mul(row[i], scale), weight[i]);
}

// Four values of a row, normed where there is a norm.
DEVICE FourFloats four_of(const float *row, const float *weight, float scale, unsigned i) {
    FourFloats v = *(const FourFloats *)(row + i);
    if (weight) {
        FourFloats w = *(const FourFloats *)(weight + i);
        v.x = mul(mul(v.x, scale), w.x);
        v.y = mul(mul(v.y, scale), w.y);
        v.z = mul(mul(v.z, scale), w.z);
        v.w = mul(mul(v.w, scale), w.w);
    }
    return v;
}

DEVICE int rounded(float v, float factor) {
    return truncated(smaller(larger(nearest(mul(v, factor)), -128.0f), 127.0f));
}

// Rows, normed where `weight` is not null, rounded to int8 by one scale each.
KERNEL(256) round_rows(const float *from, const float *weight, float eps, unsigned width, signed char *acts,
                       Quantised *quantised) {
    SHARED float shared;
    SHARED float maxima[8];
    SHARED int sums[8];
    const float *row = from + (u64)BLOCK_X * width;
    unsigned *to = (unsigned *)(acts + (u64)BLOCK_X * width);
    float scale = weight ? norm_scale(row, eps, width, &shared) : 1.0f;
    float largest = 0.0f;
    for (unsigned i = 4 * THREAD; i < width; i += 1024) {
        FourFloats v = four_of(row, weight, scale, i);
        largest = larger(larger(magnitude(v.x), magnitude(v.y)), largest);
        largest = larger(larger(magnitude(v.z), magnitude(v.w)), largest);
    }
    for (unsigned bit = 16; bit > 0; bit /= 2) largest = larger(largest, other(largest, bit));
    if ((THREAD & 31) == 0) maxima[THREAD / 32] = largest;
    BARRIER();
    largest = 1e-5f;
    for (unsigned i = 0; i < 8; i++) largest = larger(maxima[i], largest);
    float factor = quotient(127.0f, largest);
    int sum = 0;
    for (unsigned i = 4 * THREAD; i < width; i += 1024) {
        FourFloats v = four_of(row, weight, scale, i);
        int a = rounded(v.x, factor), b = rounded(v.y, factor), c = rounded(v.z, factor), d = rounded(v.w, factor);
        sum += a + b + c + d;
        to[i / 4] = (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | (unsigned)d << 24;
    }
    for (unsigned bit = 16; bit > 0; bit /= 2) sum += other_int(sum, bit);
    if ((THREAD & 31) == 0) sums[THREAD / 32] = sum;
    BARRIER();
    if (THREAD == 0) {
        sum = 0;
        for (unsigned i = 0; i < 8; i++) sum += sums[i];
        Quantised result = {factor, quotient(largest, 127.0f), sum};
        quantised[BLOCK_X] = result;
    }
}

// d += a · b on 16 rows × 32 inputs of codes and 32 inputs × 8 tokens of activations.
DEVICE void multiply(int d[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of weights with a sign, and of inputs with one and without.
DEVICE void multiply_weights(int d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply_weights_unsigned(int d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE unsigned plane(unsigned word, unsigned p) { return word >> (2 * p) & 0x03030303u; }

// A ternary product of one group of 16 rows, or of a gate's and its partner's, with 8 · TILES tokens. The order of inputs in
// a fragment is free: thread t takes line 4i + t mod 4, whose four planes are fragments of codes as they are, and sixteen
// consecutive activations. Warps share the inputs; what they found is added up in shared memory.
//
// lines: (n_groups, width / 16, 16) words; acts: (tokens rounded up, width); out: (n_tokens, stride). `mode`: 0 stores, 1 adds; of a gate,
// 0 squares a rectified value and 1 multiplies it by its logistic function.
template <unsigned TILES, unsigned GROUPS>
DEVICE void product(const unsigned *lines, const float *scales, const signed char *acts, const Quantised *quantised, float *out,
                    unsigned width, unsigned n_tokens, unsigned stride, unsigned mode, int *sums) {
    constexpr unsigned CELLS = TILES * 128;
    unsigned warp = THREAD / 32, row = THREAD % 32 / 4, four = THREAD % 4;
    unsigned first_group = BLOCK_X * GROUPS, first_token = BLOCK_Y * TILES * 8, n_lines = width / 16;
    int found[GROUPS][TILES][4] = {};
    const unsigned *words = lines + (u64)first_group * n_lines * 16 + row;
    const signed char *inputs = acts + (u64)(first_token + row) * width;
    for (unsigned chunk = warp; chunk < width / 64; chunk += WARPS) {
        unsigned line = 4 * chunk + four;
        unsigned low[GROUPS], high[GROUPS];
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
            low[g] = words[((u64)g * n_lines + line) * 16];
            high[g] = words[((u64)g * n_lines + line) * 16 + 8];
        }
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
            Four b = *(const Four *)(inputs + (u64)tile * 8 * width + 16 * line);
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++) {
                multiply(found[g][tile], plane(low[g], 0), plane(high[g], 0), plane(low[g], 1), plane(high[g], 1), b.x, b.y);
                multiply(found[g][tile], plane(low[g], 2), plane(high[g], 2), plane(low[g], 3), plane(high[g], 3), b.z, b.w);
            }
        }
    }
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                unsigned token = tile * 8 + 2 * four + i % 2;
                sums[(warp * GROUPS + g) * CELLS + token * 16 + row + i / 2 * 8] = found[g][tile][i];
            }
        }
    }
    BARRIER();
    for (unsigned cell = THREAD; cell < CELLS; cell += 32 * WARPS) {
        unsigned token = first_token + cell / 16, r = cell % 16;
        if (token >= n_tokens) continue;
        float y[GROUPS];
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
            int sum = 0;
#pragma unroll
            for (unsigned w = 0; w < WARPS; w++) sum += sums[(w * GROUPS + g) * CELLS + cell];
            float dot = from_int(sum - quantised[token].sum);
            y[g] = mul(quotient(dot, quantised[token].scale), scales[(first_group + g) * 16 + r]);
        }
        float *to = out + (u64)token * stride + BLOCK_X * 16 + r;
        if (GROUPS == 1) {
            *to = mode == 0 ? y[0] : add(*to, y[0]);
        } else if (mode == 0) {
            float gate = larger(y[0], 0.0f);
            *to = mul(mul(gate, gate), y[GROUPS - 1]);
        } else {
            float below = add(exponential(sub(0.0f, y[0])), 1.0f);
            *to = mul(quotient(y[0], below), y[GROUPS - 1]);
        }
    }
}

#define PRODUCT(name, tiles, groups)                                                                                          \
    KERNEL(256)                                                                                                               \
    name(const unsigned *lines, const float *scales, const signed char *acts, const Quantised *quantised, float *out,         \
         unsigned width, unsigned n_tokens, unsigned stride, unsigned mode) {                                                 \
        SHARED int sums[WARPS * groups * tiles * 128];                                                                        \
        product<tiles, groups>(lines, scales, acts, quantised, out, width, n_tokens, stride, mode, sums);                     \
    }
PRODUCT(product_few, 1, 1)
PRODUCT(product_many, 4, 1)
PRODUCT(gate_few, 1, 2)
PRODUCT(gate_many, 4, 2)

// Rotates queries in place and keys on their way into the cache; values go there as they are. One block a column and head of
// queries, keys or values. `turns`: (n_columns, 2, head_dim / 2), cosines and sines; `places`: (n_columns, 2), a page and
// a position in it. A page: (n_layers, n_kv_heads), each keys (4, head_dim, 32) and values (128, head_dim).
KERNEL(128) rotate_store(float *qkv, const float *turns, const unsigned *places, half *pages, unsigned n_heads, unsigned n_kv_heads,
                         unsigned head_dim, unsigned n_layers, unsigned layer) {
    unsigned column = BLOCK_X, head = BLOCK_Y, middle = head_dim / 2;
    float *from = qkv + ((u64)column * (n_heads + 2 * n_kv_heads) + head) * head_dim;
    unsigned page = places[2 * column], slot = places[2 * column + 1];
    unsigned kv_head = head < n_heads ? 0 : (head - n_heads) % n_kv_heads;
    half *keys = pages + (((u64)page * n_layers + layer) * n_kv_heads + kv_head) * (2 * PAGE * head_dim);
    half *values = keys + (u64)(PAGE + slot) * head_dim;
    keys += slot / KEY_BLOCK * KEY_BLOCK * head_dim + slot % KEY_BLOCK;
    for (unsigned i = THREAD; i < middle; i += 128) {
        float a = from[i], b = from[i + middle];
        if (head >= n_heads + n_kv_heads) {
            values[i] = narrow(a);
            values[i + middle] = narrow(b);
            continue;
        }
        float cosine = turns[(u64)column * head_dim + i], sine = turns[(u64)column * head_dim + middle + i];
        float near = sub(mul(a, cosine), mul(b, sine)), far = add(mul(b, cosine), mul(a, sine));
        if (head < n_heads) {
            from[i] = near;
            from[i + middle] = far;
        } else {
            keys[i * KEY_BLOCK] = narrow(near);
            keys[(i + middle) * KEY_BLOCK] = narrow(far);
        }
    }
}

// Causal attention of one row, one key head and up to four of its query heads over all pages of its context, in order. A thread is a
// position while scores are computed and a dimension, or two, while values are.
//
// `columns`: the column of each row; `contexts`: (n_columns, 2), positions seen and where the column's
// pages begin in `tables`; attended: (n_rows, n_heads, head_dim).
KERNEL(128) attend(const float *qkv, const half *pages, const unsigned *columns, const unsigned *contexts, const unsigned *tables,
                   float *attended, unsigned n_heads, unsigned n_kv_heads, unsigned head_dim, unsigned n_layers, unsigned layer,
                   float scale) {
    SHARED float queries[TOGETHER * MAX_HEAD_DIM];
    SHARED float weights[TOGETHER * PAGE];
    SHARED float maxima[TOGETHER];
    SHARED float totals[TOGETHER];
    unsigned column = columns[BLOCK_X], kv_head = BLOCK_Y, group = n_heads / n_kv_heads;
    unsigned first = BLOCK_Z * TOGETHER, rest = group - first, n_queries = rest < TOGETHER ? rest : TOGETHER;
    unsigned seen = contexts[2 * column];
    const unsigned *table = tables + contexts[2 * column + 1];
    const float *from = qkv + ((u64)column * (n_heads + 2 * n_kv_heads) + kv_head * group + first) * head_dim;
    for (unsigned i = THREAD; i < TOGETHER * head_dim; i += 128) {
        unsigned h = i / head_dim;
        queries[h * MAX_HEAD_DIM + i % head_dim] = h < n_queries ? from[i] : 0.0f;
    }
    BARRIER();
    float maximum[TOGETHER] = {}, total[TOGETHER] = {}, sums[2][TOGETHER] = {};
    for (unsigned index = 0; index * PAGE < seen; index++) {
        unsigned left = seen - index * PAGE, visible = left < PAGE ? left : PAGE;
        unsigned n_lanes = (visible + KEY_BLOCK - 1) / KEY_BLOCK * 2;
        const half *keys = pages + (((u64)table[index] * n_layers + layer) * n_kv_heads + kv_head) * (2 * PAGE * head_dim);
        const half *values = keys + PAGE * head_dim;
        if (THREAD < n_lanes * 16) {
            float dots[TOGETHER] = {};
            const half *key = keys + THREAD / KEY_BLOCK * KEY_BLOCK * head_dim + THREAD % KEY_BLOCK;
            for (unsigned d = 0; d < head_dim; d++) {
                float k = widen(key[d * KEY_BLOCK]);
#pragma unroll
                for (unsigned h = 0; h < TOGETHER; h++) dots[h] = fma(queries[h * MAX_HEAD_DIM + d], k, dots[h]);
            }
#pragma unroll
            for (unsigned h = 0; h < TOGETHER; h++) {
                weights[h * PAGE + THREAD] = THREAD < visible ? mul(dots[h], scale) : -__builtin_inff();
            }
        }
        BARRIER();
        if (THREAD < 16 * TOGETHER) {
            float *lane = weights + THREAD / 16 * PAGE + THREAD % 16;
            float highest = -__builtin_inff();
            for (unsigned v = 0; v < n_lanes; v++) highest = larger(lane[16 * v], highest);
            for (unsigned bit = 8; bit > 0; bit /= 2) highest = larger(highest, other(highest, bit));
            float sum = 0.0f;
            for (unsigned v = 0; v < n_lanes; v++) {
                float weight = exponential(sub(lane[16 * v], highest));
                lane[16 * v] = weight;
                sum = add(sum, weight);
            }
            sum = tree(sum);
            if (THREAD % 16 == 0) {
                maxima[THREAD / 16] = highest;
                totals[THREAD / 16] = sum;
            }
        }
        BARRIER();
        float before[TOGETHER], now[TOGETHER];
#pragma unroll
        for (unsigned h = 0; h < TOGETHER; h++) {
            float highest = index == 0 ? maxima[h] : larger(maximum[h], maxima[h]);
            before[h] = exponential(sub(maximum[h], highest));
            now[h] = exponential(sub(maxima[h], highest));
            total[h] = index == 0 ? totals[h] : add(mul(total[h], before[h]), mul(totals[h], now[h]));
            maximum[h] = highest;
        }
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            unsigned d = THREAD + i * 128;
            if (d < head_dim) {
                float gathered[TOGETHER] = {};
                for (unsigned position = 0; position < visible; position++) {
                    float value = widen(values[position * head_dim + d]);
#pragma unroll
                    for (unsigned h = 0; h < TOGETHER; h++) {
                        gathered[h] = fma(weights[h * PAGE + position], value, gathered[h]);
                    }
                }
#pragma unroll
                for (unsigned h = 0; h < TOGETHER; h++) {
                    sums[i][h] = index == 0 ? gathered[h] : fma(sums[i][h], before[h], mul(gathered[h], now[h]));
                }
            }
        }
        BARRIER();
    }
    float *to = attended + ((u64)BLOCK_X * n_heads + kv_head * group + first) * head_dim;
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        unsigned d = THREAD + i * 128;
        if (d < head_dim) {
#pragma unroll
            for (unsigned h = 0; h < TOGETHER; h++) {
                if (h < n_queries) to[h * head_dim + d] = quotient(sums[i][h], total[h]);
            }
        }
    }
}

#include "kernels/heads.cuh"

// What a card's rounding is proved with: out[i] = one operation on a[i], b[i] and c[i], or on first + i where there are no arrays.
// NaNs, whose bits differ between machines, become one.
KERNEL(256) probe(const unsigned *a, const unsigned *b, const unsigned *c, unsigned *out, unsigned first, unsigned n,
                  unsigned operation) {
    unsigned i = BLOCK_X * 256 + THREAD;
    if (i >= n) return;
    unsigned bits = a ? a[i] : first + i;
    float x = __builtin_bit_cast(float, bits);
    float y = a ? __builtin_bit_cast(float, b[i]) : 0.0f, z = a ? __builtin_bit_cast(float, c[i]) : 0.0f;
    float result = 0.0f;
    switch (operation) {
    case 0: result = exponential(x); break;
    case 1: result = root(x); break;
    case 2: result = widen((half)bits); break;
    case 3: result = widen(narrow(x)); break;
    case 4: result = nearest(x); break;
    case 5: result = from_int((int)bits); break;
    case 6: result = __builtin_bit_cast(float, truncated(x)); break;
    case 7: result = quotient(x, y); break;
    case 8: result = fma(x, y, z); break;
    case 9: result = mul(x, y); break;
    case 10: result = add(x, y); break;
    case 11: result = sub(x, y); break;
    }
    unsigned found = __builtin_bit_cast(unsigned, result);
    out[i] = (found & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : found;
}

// What a card can do at best. All bits of (n_words, 4) that are set anywhere, by thread: every word is read once.
KERNEL(256) read_all(const Four *words, unsigned *out, unsigned n_words, unsigned n_threads) {
    unsigned thread = BLOCK_X * 256 + THREAD, seen = 0;
    for (unsigned i = thread; i < n_words; i += n_threads) {
        Four four = words[i];
        seen |= four.x | four.y | four.z | four.w;
    }
    out[thread] = seen;
}

// 8 · 16 · 8 · 32 multiply-adds a round and warp, in eight sums that do not wait for each other; out[i] is a thread's sum of
// 32 products of ones for each of its four places in each of them.
KERNEL(256) multiply_all(int *out, unsigned rounds) {
    int sums[8][4] = {};
    for (unsigned round = 0; round < rounds; round++) {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            multiply(sums[i], 0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u);
        }
    }
    int sum = 0;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    out[BLOCK_X * 256 + THREAD] = sum;
}
