// Logistic regression in C++, with state of 8 bits, and with threads that share each step. fastopt exported the kernel:
//
//   fastopt export adam --storage 8bit -o adam8.c
//   c++ -O2 -std=c++17 -pthread train.cpp -o train && ./train

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "adam8.c"  // it is C++ too

constexpr size_t FEATURES = 2000, SAMPLES = 400, THREADS = 3;
constexpr int STEPS = 60;

struct State {
    std::vector<uint8_t> m, v;
    std::vector<uint32_t> m_scale, v_scale;  // one for each tile of 256

    explicit State(size_t n) : m(n), v(n), m_scale((n + 255) / 256), v_scale((n + 255) / 256) {}
};

// Take step t, each thread on a range of whole tiles; the bits are those of one thread.
void step(int t, double lr, std::vector<float>& p, const std::vector<float>& g, State& state) {
    adam_pf32_gf32_mf8_vuf8_scalars scalars;
    uint32_t keys[2];
    adam_pf32_gf32_mf8_vuf8_scalars_at(t, lr, &scalars);
    adam_pf32_gf32_mf8_vuf8_keys_at(/* seed */ 7, t, keys);
    const size_t n = p.size(), tiles = (n + 255) / 256, each = (tiles + THREADS - 1) / THREADS * 256;
    std::vector<std::thread> threads;
    for (size_t first = 0; first < n; first += each) {
        threads.emplace_back([=, &p, &g, &state, &scalars, &keys] {
            adam_pf32_gf32_mf8_vuf8(std::min(each, n - first), &p[first], &g[first], &state.m[first],
                                    &state.m_scale[first / 256], &state.v[first], &state.v_scale[first / 256], keys,
                                    first, &scalars);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

int main() {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::vector<float> truth(FEATURES), x(SAMPLES * FEATURES), y(SAMPLES), p(FEATURES), g(FEATURES);
    for (float& w : truth) w = normal(random);
    for (float& value : x) value = normal(random);
    for (size_t k = 0; k < SAMPLES; ++k) {
        float sum = 0;
        for (size_t i = 0; i < FEATURES; ++i) sum += truth[i] * x[k * FEATURES + i];
        y[k] = sum > 0 ? 1.0f : 0.0f;
    }
    State state(FEATURES);
    for (int t = 1; t <= STEPS; ++t) {
        double loss = 0;
        std::fill(g.begin(), g.end(), 0.0f);
        for (size_t k = 0; k < SAMPLES; ++k) {
            float sum = 0;
            for (size_t i = 0; i < FEATURES; ++i) sum += p[i] * x[k * FEATURES + i];
            const float chance = 1 / (1 + std::exp(-sum));
            loss -= std::log(std::max(y[k] > 0 ? chance : 1 - chance, 1e-7f)) / SAMPLES;
            for (size_t i = 0; i < FEATURES; ++i) g[i] += (chance - y[k]) / SAMPLES * x[k * FEATURES + i];
        }
        if (t == 1 || t % 20 == 0) std::printf("step %d loss %.6f\n", t, loss);
        step(t, 0.01, p, g, state);
    }
}
