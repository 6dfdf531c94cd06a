// The end of a step: scores, the sums of log-probabilities, and what a draw chooses from. A part of kernels.cu.

// scores (n_tokens, vocab) = canonical dots of the rows of `table`, (vocab, hidden), with `input`, (n_tokens, hidden). Half a warp is
// sixteen lanes of one row, for four tokens. Blocks that follow one another have the same rows, which come from memory once.
KERNEL(256) score(const half *table, const float *input, float *scores, unsigned hidden, unsigned vocab, unsigned n_tokens) {
    unsigned lane = THREAD % 16, id = BLOCK_Y * 16 + THREAD / 16, first = BLOCK_X * 4;
    const half *row = table + (u64)(id < vocab ? id : vocab - 1) * hidden + lane;
    const float *inputs[4];
    float sums[4] = {};
#pragma unroll
    for (unsigned t = 0; t < 4; t++) {
        inputs[t] = input + (u64)(first + t < n_tokens ? first + t : n_tokens - 1) * hidden + lane;
    }
    for (unsigned start = 0; start < hidden; start += 64) {
#pragma unroll
        for (unsigned i = start; i < start + 64; i += 16) {
            float weight = widen(row[i]);
#pragma unroll
            for (unsigned t = 0; t < 4; t++) sums[t] = fma(weight, inputs[t][i], sums[t]);
        }
    }
#pragma unroll
    for (unsigned t = 0; t < 4; t++) {
        float sum = tree(sums[t]);
        if (lane == 0 && id < vocab && first + t < n_tokens) scores[(u64)(first + t) * vocab + id] = sum;
    }
}

// For each row of `scores`, (rows, vocab), that `rows` names: its largest score, and of each 1024 scores in order the sum of
// exp(score - largest). `sums`: (BLOCK_X, 1 + pieces).
KERNEL(256) exp_sums(const float *scores, const unsigned *rows, float *sums, unsigned vocab) {
    SHARED float maxima[8];
    const float *row = scores + (u64)rows[BLOCK_X] * vocab;
    float largest = -__builtin_inff();
    for (unsigned id = THREAD; id < vocab; id += 256) largest = larger(row[id], largest);
    for (unsigned bit = 16; bit > 0; bit /= 2) largest = larger(largest, other(largest, bit));
    if ((THREAD & 31) == 0) maxima[THREAD / 32] = largest;
    BARRIER();
    for (unsigned i = 0; i < 8; i++) largest = larger(maxima[i], largest);
    unsigned n_pieces = (vocab + 1023) / 1024, lane = THREAD % 16;
    float *out = sums + (u64)BLOCK_X * (1 + n_pieces);
    if (THREAD == 0) out[0] = largest;
    // Both halves of a warp go round equally often: each needs the other's threads for its tree.
    for (unsigned first = 0; first < n_pieces; first += 16) {
        unsigned piece = first + THREAD / 16;
        float sum = 0.0f;
        for (unsigned i = 0; i < 1024; i += 16) {
            unsigned id = piece * 1024 + i + lane;
            if (id < vocab) sum = add(sum, exponential(sub(row[id], largest)));
        }
        sum = tree(sum);
        if (lane == 0 && piece < n_pieces) out[1 + piece] = sum;
    }
}

// ‖x‖, a little too large, from the sum of squares.
DEVICE float outward(float squares) { return add(mul(root(squares), 1.0001f), 1e-16f); }

DEVICE float whole(float v, float step) { return smaller(larger(nearest(quotient(v, step)), -32767.0f), 32767.0f); }

// The rows of `from` that `rows` names, rounded for the copy of the output matrix in int8 as `Screen::round` does it: to at most 63
// where that is near enough, else to at most `most`. Each integer is 256 times a byte with a sign and one without.
KERNEL(256) round_wide(const float *from, const unsigned *rows, unsigned width, float most, unsigned *high, unsigned *low,
                       float *steps) {
    SHARED float maxima[8];
    SHARED float narrow;
    const float *row = from + (u64)rows[BLOCK_X] * width;
    float largest = 0.0f;
    for (unsigned i = THREAD; i < width; i += 256) largest = larger(magnitude(row[i]), largest);
    for (unsigned bit = 16; bit > 0; bit /= 2) largest = larger(largest, other(largest, bit));
    if ((THREAD & 31) == 0) maxima[THREAD / 32] = largest;
    BARRIER();
    for (unsigned i = 0; i < 8; i++) largest = larger(maxima[i], largest);
    float step = largest > 1e-30f ? quotient(largest, 63.0f) : 1.0f;
    if (THREAD < 32) {
        float squares = 0.0f, errors = 0.0f;
        for (unsigned i = THREAD & 15; i < width; i += 16) {
            float v = row[i], error = fma(whole(v, step), sub(0.0f, step), v);
            squares = fma(v, v, squares);
            errors = fma(error, error, errors);
        }
        squares = tree(squares);
        errors = tree(errors);
        if (THREAD == 0) narrow = outward(errors) <= mul(0.03f, outward(squares)) ? 1.0f : 0.0f;
    }
    BARRIER();
    float bound = 63.0f;
    if (narrow == 0.0f) {
        bound = most;
        step = largest > 1e-30f ? quotient(largest, most) : 1.0f;
    }
    for (unsigned i = THREAD; i < width / 4; i += 256) {
        unsigned upper = 0, lower = 0;
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            int v = truncated(smaller(larger(whole(row[4 * i + k], step), sub(0.0f, bound)), bound));
            upper |= ((unsigned)v >> 8 & 255u) << (8 * k);
            lower |= ((unsigned)v & 255u) << (8 * k);
        }
        high[(u64)BLOCK_X * (width / 4) + i] = upper;
        low[(u64)BLOCK_X * (width / 4) + i] = lower;
    }
    if (THREAD == 0) steps[BLOCK_X] = step;
}

// scores (n_tokens, vocab) by the copy in int8. A warp is a group of 16 rows for 32 tokens. lines: (groups, width / 4, 16) words of
// four weights; high and low: (tokens rounded up to 32, width / 4). Blocks that follow one another have the same rows.
KERNEL(256) screen(const unsigned *lines, const float *scales, const unsigned *high, const unsigned *low, const float *steps, float *scores,
                   unsigned width, unsigned vocab, unsigned n_tokens) {
    unsigned row = THREAD % 32 / 4, four = THREAD % 4, group = BLOCK_Y * 8 + THREAD / 32, first = BLOCK_X * 32;
    if (group * 16 >= vocab) return;
    int upper[4][4] = {}, lower[4][4] = {};
    const unsigned *words = lines + (u64)group * (width / 4) * 16 + row;
    u64 input = (u64)(first + row) * (width / 4);
    for (unsigned line = four; line < width / 4; line += 8) {
        unsigned a[4] = {words[line * 16], words[line * 16 + 8], words[line * 16 + 64], words[line * 16 + 72]};
#pragma unroll
        for (unsigned tile = 0; tile < 4; tile++) {
            u64 at = input + (u64)tile * 2 * width + line;
            multiply_weights(upper[tile], a, high[at], high[at + 4]);
            multiply_weights_unsigned(lower[tile], a, low[at], low[at + 4]);
        }
    }
#pragma unroll
    for (unsigned tile = 0; tile < 4; tile++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned token = first + tile * 8 + 2 * four + i % 2, id = group * 16 + row + i / 2 * 8;
            if (token >= n_tokens || id >= vocab) continue;
            int sum = (int)((unsigned)upper[tile][i] * 256u + (unsigned)lower[tile][i]);
            scores[(u64)token * vocab + id] = mul(from_int(sum), mul(scales[id], steps[token]));
        }
    }
}

// Of each 1024 scores of each row: the largest, and the sum of exp(score - largest). `sums`: (rows, pieces, 2).
KERNEL(256) piece_sums(const float *scores, float *sums, unsigned vocab) {
    const float *row = scores + (u64)BLOCK_X * vocab;
    unsigned n_pieces = (vocab + 1023) / 1024, lane = THREAD % 16;
    float *out = sums + (u64)BLOCK_X * n_pieces * 2;
    for (unsigned first = 0; first < n_pieces; first += 16) {
        unsigned piece = first + THREAD / 16;
        float largest = -__builtin_inff(), sum = 0.0f;
        for (unsigned i = 0; i < 1024; i += 16) {
            unsigned id = piece * 1024 + i + lane;
            if (id < vocab) largest = larger(row[id], largest);
        }
        for (unsigned bit = 8; bit > 0; bit /= 2) largest = larger(largest, other(largest, bit));
        for (unsigned i = 0; i < 1024; i += 16) {
            unsigned id = piece * 1024 + i + lane;
            if (id < vocab) sum = add(sum, exponential(sub(row[id], largest)));
        }
        sum = tree(sum);
        if (lane == 0 && piece < n_pieces) {
            out[2 * piece] = largest;
            out[2 * piece + 1] = sum;
        }
    }
}

// How many of a thread's scores in a piece reach a threshold.
DEVICE int reaching_in(const float *row, unsigned piece, unsigned vocab, float threshold) {
    int n = 0;
    for (unsigned i = THREAD % 32; i < 1024; i += 32) {
        unsigned id = piece * 1024 + i;
        if (id < vocab && row[id] >= threshold) n++;
    }
    return n;
}

struct Near {
    unsigned id;
    float about;
    unsigned exact;
};

// The tokens that are likely by the copy's scores, `about`, with their exact ones: head/total.rs says which. A warp takes every eighth
// piece: the first distance from the best within which the piece has at most 64. `exact` has the rows that `rows` names.
//
// counts: (rows); found: (room, n_rows), with room for all.
KERNEL(256) near(const float *about, const unsigned *exact, const unsigned *rows, const float *sums, unsigned *counts, Near *found,
                 unsigned vocab, unsigned n_rows) {
    SHARED unsigned numbers[256];
    SHARED float reach[1024];
    const float *row = about + (u64)BLOCK_X * vocab;
    unsigned n_pieces = (vocab + 1023) / 1024;
    float best = -__builtin_inff();
    for (unsigned i = 0; i < n_pieces; i++) best = larger(sums[((u64)BLOCK_X * n_pieces + i) * 2], best);
    unsigned n = 0;
    for (unsigned piece = THREAD / 32; piece < n_pieces; piece += 8) {
        float chosen = __builtin_inff();
        int mine = 0;
        for (float distance = 1.0f; distance < 5.0f; distance = add(distance, distance)) {
            float threshold = sub(best, distance);
            int here = reaching_in(row, piece, vocab, threshold), all = here;
            for (unsigned bit = 16; bit > 0; bit /= 2) all += other_int(all, bit);
            if (all > 64) break;
            chosen = threshold;
            mine = here;
        }
        if (THREAD % 32 == 0) reach[piece] = chosen;
        n += (unsigned)mine;
    }
    numbers[THREAD] = n;
    BARRIER();
    unsigned before = 0, total = 0;
    for (unsigned i = 0; i < 256; i++) {
        total += numbers[i];
        before += i < THREAD ? numbers[i] : 0;
    }
    if (THREAD == 0) counts[BLOCK_X] = total;
    if (n == 0) return;
    const unsigned *scores = exact + (u64)rows[BLOCK_X] * vocab;
    for (unsigned piece = THREAD / 32; piece < n_pieces; piece += 8) {
        for (unsigned i = THREAD % 32; i < 1024; i += 32) {
            unsigned id = piece * 1024 + i;
            if (id >= vocab || !(row[id] >= reach[piece])) continue;
            Near one = {id, row[id], scores[id]};
            found[(u64)before * n_rows + BLOCK_X] = one;
            before++;
        }
    }
}

// What `choose` looks for in one row: the `most` best scores, or what may win with noise.
struct Choice {
    unsigned row, most, noisy;
    float temperature, inverse;
    unsigned seed_low, seed_high, choice, position;
    // Where the row's bits of allowed tokens begin in `masks`; all are allowed where it is ALL.
    unsigned mask;
};
struct alignas(8) Found {
    unsigned id, score;
};
constexpr unsigned ALL = 0xffffffffu;
// In place of a score that counts no more: a NaN that no operation makes.
constexpr unsigned TAKEN = 0xffc05eedu;

// taken[i] = the score of the row pairs[2 i] and the token pairs[2 i + 1], which counts no more.
KERNEL(256) take(unsigned *scores, const unsigned *pairs, unsigned *taken, unsigned vocab, unsigned n_pairs) {
    unsigned i = BLOCK_X * 256 + THREAD;
    if (i >= n_pairs) return;
    unsigned *score = scores + (u64)pairs[2 * i] * vocab + pairs[2 * i + 1];
    taken[i] = *score;
    *score = TAKEN;
}

// The random words of four ids: philox.rs.
DEVICE void philox(const Choice &choice, unsigned group, unsigned words[4]) {
    unsigned c0 = choice.choice, c1 = choice.position, c2 = group, c3 = 0, low = choice.seed_low, high = choice.seed_high;
#pragma unroll
    for (unsigned i = 0; i < 10; i++) {
        u64 first = (u64)c0 * 0xD2511F53u, second = (u64)c2 * 0xCD9E8D57u;
        c0 = (unsigned)(second >> 32) ^ c1 ^ low;
        c1 = (unsigned)second;
        c2 = (unsigned)(first >> 32) ^ c3 ^ high;
        c3 = (unsigned)first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

// The noise of a random word is at least this, and at most 0.5 more where it matters: -ln(-ln(1 - c)) with c = (~word + 1/2) / 2^32.
// -ln(1 - c) is at most 1.387 c up to a half, and the logarithm of a float is at least that of the straight line between powers of
// two. Above a half, words are at least 0 and noise at least -3.14.
DEVICE float least_noise(unsigned word) {
    unsigned complement = ~word;
    if (complement >= 0x7fffffffu) return -3.2f;
    float line = mul(from_int((int)__builtin_bit_cast(unsigned, from_int((int)complement + 1))), 0x1p-23f);
    return sub(mul(sub(159.0f, line), 0.6931f), 0.4f);
}

DEVICE bool counts(const Choice &choice, const unsigned *masks, unsigned id, unsigned score) {
    if (score == TAKEN) return false;
    return choice.mask == ALL || (masks[choice.mask + id / 32] >> (id % 32) & 1) == 1;
}

// Which of four ids reach the threshold, one bit each. With noise this is the test of `noisy` in kernel/scores.rs.
DEVICE unsigned reaching(const unsigned *row, const Choice &choice, const unsigned *masks, unsigned vocab, float threshold,
                         unsigned group) {
    unsigned found = 0;
    float reach[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        unsigned id = 4 * group + i;
        reach[i] = 0.0f;
        if (id >= vocab) continue;
        unsigned bits = row[id];
        if (!counts(choice, masks, id, bits)) continue;
        float value = __builtin_bit_cast(float, bits);
        if (choice.noisy) {
            reach[i] = mul(exponential(mul(sub(value, threshold), choice.inverse)), 1.001f);
            if (reach[i] >= 0x1p-33f) found |= 1u << i;
        } else if (value >= threshold) {
            found |= 1u << i;
        }
    }
    if (found == 0 || !choice.noisy) return found;
    unsigned words[4];
    philox(choice, group, words);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        float complement = mul(from_int((int)(~words[i] >> 1)), 0x1p-31f);
        if (reach[i] < complement) found &= ~(1u << i);
    }
    return found;
}

// The tokens of a row of `scores`, (rows, vocab), from which a draw chooses as from all of them. A block is a choice, and a
// thread every 256th four ids: the `most`-th best of the threads' best scores is a threshold that at least `most` tokens reach,
// and few more. With noise the threshold is the best of what each token has at least.
//
// told: (n_choices, 2), how many were found and whether any score is no number; found: (room, n_choices), written where all fit.
KERNEL(256) choose(const unsigned *scores, const Choice *choices, const unsigned *masks, unsigned *told, Found *found,
                   unsigned vocab, unsigned n_choices, unsigned room) {
    SHARED float bests[256];
    SHARED unsigned numbers[256];
    SHARED float shared;
    Choice choice = choices[BLOCK_X];
    const unsigned *row = scores + (u64)choice.row * vocab;
    float best = -__builtin_inff();
    unsigned is_broken = 0;
    for (unsigned group = THREAD; 4 * group < vocab; group += 256) {
        unsigned words[4] = {};
        if (choice.noisy) philox(choice, group, words);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned id = 4 * group + i;
            if (id >= vocab) continue;
            unsigned bits = row[id];
            if (bits != TAKEN && (bits & 0x7f800000u) == 0x7f800000u) is_broken = 1;
            if (!counts(choice, masks, id, bits)) continue;
            float value = __builtin_bit_cast(float, bits);
            if (choice.noisy) value = add(value, mul(choice.temperature, least_noise(words[i])));
            best = larger(value, best);
        }
    }
    bests[THREAD] = best;
    numbers[THREAD] = is_broken;
    BARRIER();
    unsigned rank = 1;
    for (unsigned i = 0; i < 256; i++) {
        rank += bests[i] > best || (bests[i] == best && i < THREAD);
        is_broken |= numbers[i];
    }
    // With noise some roundings more than there are.
    if (rank == choice.most) shared = choice.noisy ? sub(best, mul(magnitude(best), 0x1p-20f)) : best;
    BARRIER();
    float threshold = shared;
    unsigned n = 0, before = 0, total = 0;
    for (unsigned group = THREAD; 4 * group < vocab; group += 256) {
        unsigned hits = reaching(row, choice, masks, vocab, threshold, group);
        n += (hits & 1) + (hits >> 1 & 1) + (hits >> 2 & 1) + (hits >> 3);
    }
    numbers[THREAD] = n;
    BARRIER();
    for (unsigned i = 0; i < 256; i++) {
        total += numbers[i];
        before += i < THREAD ? numbers[i] : 0;
    }
    if (THREAD == 0) {
        told[2 * BLOCK_X] = total;
        told[2 * BLOCK_X + 1] = is_broken;
    }
    if (n == 0 || total > room) return;
    for (unsigned group = THREAD; 4 * group < vocab; group += 256) {
        unsigned hits = reaching(row, choice, masks, vocab, threshold, group);
        for (unsigned i = 0; i < 4; i++) {
            if ((hits >> i & 1) == 0) continue;
            Found one = {4 * group + i, row[4 * group + i]};
            found[(u64)before * n_choices + BLOCK_X] = one;
            before++;
        }
    }
}
