// What this machine can do at most: reads of memory beyond the caches, and multiply-adds of small integers and
// of f32, on as many threads as the first argument says. Prints one JSON object.
//
// Must never be compiled for one machine: the instruction set is chosen when it runs.

#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 256, ROUNDS = 5, LOOPS = 20000000 };
static const size_t BYTES = (size_t)256 << 20;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    double (*work)(void *); // gives what it did, in bytes or multiply-adds
    void *data;
    pthread_barrier_t *barrier;
    double done, begun, ended;
} Job;

static void *start(void *at) {
    Job *job = at;
    pthread_barrier_wait(job->barrier);
    job->begun = now();
    job->done = job->work(job->data);
    job->ended = now();
    return NULL;
}

// The best of some rounds on all threads, a second.
static double rate(int threads, double (*work)(void *), void **data) {
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        Job jobs[MAX_THREADS];
        pthread_t ids[MAX_THREADS];
        pthread_barrier_t barrier;
        pthread_barrier_init(&barrier, NULL, (unsigned)threads);
        for (int i = 0; i < threads; i++) {
            jobs[i] = (Job){.work = work, .data = data ? data[i] : NULL, .barrier = &barrier};
            if (pthread_create(&ids[i], NULL, start, &jobs[i])) {
                fprintf(stderr, "can't start a thread\n");
                exit(1);
            }
        }
        double done = 0, begun = 1e300, ended = 0;
        for (int i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            done += jobs[i].done;
            begun = jobs[i].begun < begun ? jobs[i].begun : begun;
            ended = jobs[i].ended > ended ? jobs[i].ended : ended;
        }
        pthread_barrier_destroy(&barrier);
        best = done / (ended - begun) > best ? done / (ended - begun) : best;
    }
    return best;
}

#define EIGHT(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)

__attribute__((target("avx2"))) static double read_memory(void *data) {
    const __m256i *at = data;
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < BYTES / 32; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(at + i + j));
    __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    __asm__ volatile("" : : "x"(all));
    return (double)BYTES;
}

// Eight independent sums hide the latency; the barriers keep the compiler from seeing that nothing changes.
__attribute__((target("avx2,fma"))) static double int8_avx2(void *unused) {
    (void)unused;
    __m256i s[8], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
        __asm__ volatile("" : "+x"(a), "+x"(b));
#define STEP(n) s[n] = _mm256_add_epi32(s[n], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)); \
        __asm__ volatile("" : "+x"(s[n]), "+x"(a));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 32.0 * LOOPS;
}

__attribute__((target("avx2,fma"))) static double int16_avx2(void *unused) {
    (void)unused;
    __m256i s[8], a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(5);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
        __asm__ volatile("" : "+x"(a), "+x"(b));
#define STEP(n) s[n] = _mm256_add_epi32(s[n], _mm256_madd_epi16(a, b)); __asm__ volatile("" : "+x"(s[n]), "+x"(a));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 16.0 * LOOPS;
}

__attribute__((target("avx2,fma"))) static double f32_avx2(void *unused) {
    (void)unused;
    __m256 s[8], a = _mm256_set1_ps(3), b = _mm256_set1_ps(5);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
        __asm__ volatile("" : "+x"(a), "+x"(b));
#define STEP(n) s[n] = _mm256_fmadd_ps(a, b, s[n]); __asm__ volatile("" : "+x"(s[n]));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 8.0 * LOOPS;
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))

AVX512 static double int8_avx512(void *unused) {
    (void)unused;
    __m512i s[8], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
#define STEP(n) s[n] = _mm512_dpbusd_epi32(s[n], a, b); __asm__ volatile("" : "+v"(s[n]));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 64.0 * LOOPS;
}

AVX512 static double int16_avx512(void *unused) {
    (void)unused;
    __m512i s[8], a = _mm512_set1_epi16(3), b = _mm512_set1_epi16(5);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
#define STEP(n) s[n] = _mm512_dpwssd_epi32(s[n], a, b); __asm__ volatile("" : "+v"(s[n]));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 32.0 * LOOPS;
}

AVX512 static double f32_avx512(void *unused) {
    (void)unused;
    __m512 s[8], a = _mm512_set1_ps(3), b = _mm512_set1_ps(5);
    memset(s, 0, sizeof s);
    for (long i = 0; i < LOOPS; i++) {
#define STEP(n) s[n] = _mm512_fmadd_ps(a, b, s[n]); __asm__ volatile("" : "+v"(s[n]));
        EIGHT(STEP)
#undef STEP
    }
    return 8.0 * 16.0 * LOOPS;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "limits THREADS: from 1 to %d\n", MAX_THREADS);
        return 2;
    }
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        fprintf(stderr, "limits needs AVX2\n");
        return 1;
    }
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vnni");
    void *data[MAX_THREADS];
    for (int i = 0; i < threads; i++) {
        data[i] = aligned_alloc(64, BYTES);
        if (!data[i]) {
            fprintf(stderr, "no memory\n");
            return 1;
        }
        memset(data[i], i + 1, BYTES);
    }
    double read = rate(threads, read_memory, data);
    double int8 = rate(threads, wide ? int8_avx512 : int8_avx2, NULL);
    double int16 = rate(threads, wide ? int16_avx512 : int16_avx2, NULL);
    double f32 = rate(threads, wide ? f32_avx512 : f32_avx2, NULL);
    printf("{\"test\": \"limits\", \"threads\": %d, \"isa\": \"%s\", \"read_gb_per_s\": %.1f, "
           "\"int8_gmac_per_s\": %.0f, \"int16_gmac_per_s\": %.0f, \"f32_gmac_per_s\": %.0f}\n",
           threads, wide ? "avx512-vnni" : "avx2", read / 1e9, int8 / 1e9, int16 / 1e9, f32 / 1e9);
    return 0;
}
