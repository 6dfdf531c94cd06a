// Two pieces of the network that a general compiler leaves bound by memory: each row is read once, worked on in
// the first-level cache and written once. Plain loops, which g++ vectorises. Called by fused.py, which says what
// the shapes are. bf16 values travel as their upper 16 bits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 narrow(float x) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static const int MAX_FEATURES = 8192;

extern "C" {

// f = relu(gate * a)^2 * (up * b), with a = unit[0] * row and b = unit[1] * row; then RMSNorm, then int8.
// `row` null means no quantisation: a = b = 1, and what is written is the norm's value itself.
void gated_forward(const bf16* gate, const bf16* up, const float* row, const float* unit, const float* weight,
                   bf16* out, float* scale, float* rstd, long n, long m, float eps) {
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        float f[MAX_FEATURES];
        const bf16 *g = gate + i * m, *u = up + i * m;
        float a = row ? unit[0] * row[i] : 1.0f, b = row ? unit[1] * row[i] : 1.0f, squares = 0, top = 0;
        for (long j = 0; j < m; j++) {
            float r = std::max(wide(g[j]) * a, 0.0f);
            f[j] = r * r * (wide(u[j]) * b);
            squares += f[j] * f[j];
        }
        float inverse = 1.0f / std::sqrt(squares / m + eps);
        for (long j = 0; j < m; j++) {
            f[j] *= inverse * weight[j];
            top = std::max(top, std::fabs(f[j]));
        }
        float s = row ? 127.0f / std::max(top, 1e-5f) : 1.0f;
        bf16* o = out + i * m;
        if (row)
            for (long j = 0; j < m; j++) o[j] = narrow(std::min(std::max(std::rint(f[j] * s), -128.0f), 127.0f));
        else
            for (long j = 0; j < m; j++) o[j] = narrow(f[j]);
        scale[i] = s;
        rstd[i] = inverse;
    }
}

// The gradient of gated_forward; rounding passes it straight through. d_weight is added to.
void gated_backward(const bf16* d_out, const bf16* gate, const bf16* up, const float* row, const float* unit,
                    const float* weight, const float* scale, const float* rstd, bf16* d_gate, bf16* d_up,
                    float* d_weight, long n, long m) {
#pragma omp parallel
    {
        std::vector<float> sum(m, 0.0f);
#pragma omp for
        for (long i = 0; i < n; i++) {
            float r[MAX_FEATURES], v[MAX_FEATURES], d[MAX_FEATURES];
            const bf16 *g = gate + i * m, *u = up + i * m, *o = d_out + i * m;
            float a = row ? unit[0] * row[i] : 1.0f, b = row ? unit[1] * row[i] : 1.0f;
            float s = scale[i], inverse = rstd[i], dot = 0;
            for (long j = 0; j < m; j++) {
                r[j] = std::max(wide(g[j]) * a, 0.0f);
                v[j] = wide(u[j]) * b;
                float hat = r[j] * r[j] * v[j] * inverse, dy = wide(o[j]) * s;
                sum[j] += dy * hat;
                d[j] = dy * weight[j];
                dot += d[j] * hat;
            }
            dot /= m;
            for (long j = 0; j < m; j++) {
                float square = r[j] * r[j];
                float df = inverse * (d[j] - square * v[j] * inverse * dot);
                d_gate[i * m + j] = narrow(df * 2.0f * r[j] * v[j] * a);
                d_up[i * m + j] = narrow(df * square * b);
            }
        }
#pragma omp critical
        for (long j = 0; j < m; j++) d_weight[j] += sum[j];
    }
}

// Causal softmax of c * scores, row i over columns 0..=i. scores, out: (n, t, t).
void causal_softmax_forward(const bf16* scores, bf16* out, long n, long t, float c) {
#pragma omp parallel for
    for (long k = 0; k < n * t; k++) {
        float e[MAX_FEATURES];
        long i = k % t;
        const bf16* x = scores + k * t;
        bf16* o = out + k * t;
        float top = -INFINITY, sum = 0;
        for (long j = 0; j <= i; j++) {
            e[j] = wide(x[j]) * c;
            top = std::max(top, e[j]);
        }
        for (long j = 0; j <= i; j++) {
            e[j] = expf(e[j] - top);
            sum += e[j];
        }
        float inverse = 1.0f / sum;
        for (long j = 0; j <= i; j++) o[j] = narrow(e[j] * inverse);
        std::fill(o + i + 1, o + t, 0);
    }
}

void causal_softmax_backward(const bf16* d_out, const bf16* out, bf16* d_scores, long n, long t, float c) {
#pragma omp parallel for
    for (long k = 0; k < n * t; k++) {
        long i = k % t;
        const bf16 *p = out + k * t, *d = d_out + k * t;
        bf16* o = d_scores + k * t;
        float dot = 0;
        for (long j = 0; j <= i; j++) dot += wide(p[j]) * wide(d[j]);
        for (long j = 0; j <= i; j++) o[j] = narrow(wide(p[j]) * (wide(d[j]) - dot) * c);
        std::fill(o + i + 1, o + t, 0);
    }
}
}
