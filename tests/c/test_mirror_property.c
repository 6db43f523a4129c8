/* SPDX-License-Identifier: MIT */
/*
 * The mirror plan against a brute-force model of the whole world.
 *
 * For random worlds, groups and calls, two results are computed for every member of the group and
 * compared element by element:
 *
 *   model      every member holds the data of its image in the member's node, found by counting,
 *              without lofi; then the real collective is computed on all n members;
 *   execution  each member's plan is executed: inputs adjusted, the collective computed among the
 *              members of the node, the result tiled.
 *
 * Numbers are integers modulo 2^64, so equality is exact; a mean is kept as numerator and
 * denominator. What is refused, and what is real, implicit or nothing, is predicted from the
 * table in lofi.h by code that shares nothing with the library.
 *
 * reduce_scatter and all_to_all: here the pure image model and the plan agree, because a member
 * receives only its own slot of each input, and its own slot is that of a member of this node. The
 * slots for members of other nodes are never read, neither by the model nor by the plan; in the
 * real world their owners would have received them. That they are not read is checked: they are
 * overwritten before the plan is executed.
 *
 * Argument: a seed. The number of cases is the second.
 */
#include "world.h"

#define MAX_NODES 5
#define MAX_LOCAL 5
#define MAX_RANKS (MAX_NODES * MAX_LOCAL)
#define ELEMENTS 2 /* in a slot */
#define MAX_VALUES (MAX_RANKS * ELEMENTS)

/* The data of one rank: one slot, or one for each member of the group. */
struct data {
    int count;
    uint64_t value[MAX_VALUES];
    uint64_t under; /* every value is over this; 1 but for means */
};

struct world_case {
    int nodes, local;
    int n, ranks[MAX_RANKS]; /* the group, global ranks in group order */
    int m, is_even;          /* found by counting */
    lofi_call call;
    uint64_t premultiplier;
    struct data input[MAX_RANKS]; /* of each member */
};

static lofi_topology *topologies[MAX_NODES + 1][MAX_LOCAL + 1][MAX_RANKS];
static unsigned long verdicts[5]; /* by action, and refused last */

/* ---- the model's own view of a group --------------------------------------------------------- */

static int node_of(const struct world_case *c, int member)
{
    return c->ranks[member] / c->local;
}

static int members_in(const struct world_case *c, int node)
{
    int count = 0;
    for (int i = 0; i < c->n; i++)
        count += node_of(c, i) == node;
    return count;
}

/* The member in `node` with as many predecessors in its node as `member` has in its own. */
static int image_in(const struct world_case *c, int member, int node)
{
    int before = 0;
    for (int i = 0; i < member; i++)
        before += node_of(c, i) == node_of(c, member);
    for (int i = 0; i < c->n; i++)
        if (node_of(c, i) == node && before-- == 0) return i;
    abort();
}

static void count_nodes(struct world_case *c)
{
    int share = members_in(c, node_of(c, 0));
    c->m = 0;
    c->is_even = 1;
    for (int node = 0; node < c->nodes; node++) {
        int count = members_in(c, node);
        c->m += count > 0;
        if (count > 0 && count != share) c->is_even = 0;
    }
}

/* ---- the real collective, on any list of participants ---------------------------------------- */

static uint64_t combine(const struct world_case *c, uint64_t a, uint64_t b)
{
    switch (c->call.op) {
    case LOFI_SUM:
    case LOFI_PREMUL_SUM:
    case LOFI_AVG:
        return c->call.is_bool ? (a | b) != 0 : a + b;
    case LOFI_PRODUCT:
        return a * b;
    case LOFI_MIN:
        return a < b ? a : b;
    case LOFI_MAX:
        return a > b ? a : b;
    case LOFI_BAND:
        return a & b;
    case LOFI_BOR:
        return a | b;
    case LOFI_BXOR:
        return a ^ b;
    case LOFI_OP_COUNT:
        break;
    }
    abort();
}

/* Reduces slot `slot` of `count` inputs into one slot. */
static struct data reduce_slot(const struct world_case *c, const struct data *const *in, int count,
                               int slot)
{
    struct data out = {ELEMENTS, {0}, 1};
    for (int i = 0; i < count; i++)
        for (int e = 0; e < ELEMENTS; e++) {
            uint64_t value = in[i]->value[slot * ELEMENTS + e];
            if (c->call.op == LOFI_PREMUL_SUM) value *= c->premultiplier;
            out.value[e] = i == 0 ? value : combine(c, out.value[e], value);
        }
    if (c->call.op == LOFI_AVG) out.under = (uint64_t)count;
    return out;
}

/* Puts slot `slot` of each input side by side. */
static struct data collect_slot(const struct data *const *in, int count, int slot)
{
    struct data out = {count * ELEMENTS, {0}, 1};
    for (int i = 0; i < count; i++)
        memcpy(out.value + i * ELEMENTS, in[i]->value + slot * ELEMENTS,
               ELEMENTS * sizeof(uint64_t));
    return out;
}

static struct data empty(void)
{
    return (struct data){0, {0}, 1};
}

/* What participant `me` receives when `count` participants with these inputs, of as many slots,
 * make the call. `root` is a participant. */
static struct data run_collective(const struct world_case *c, const struct data *const *in,
                                  int count, int me, int root)
{
    switch (c->call.collective) {
    case LOFI_ALL_REDUCE:
        return reduce_slot(c, in, count, 0);
    case LOFI_REDUCE:
        return me == root ? reduce_slot(c, in, count, 0) : empty();
    case LOFI_BROADCAST:
        return *in[root];
    case LOFI_ALL_GATHER:
        return collect_slot(in, count, 0);
    case LOFI_GATHER:
        return me == root ? collect_slot(in, count, 0) : empty();
    case LOFI_SCATTER:
        return collect_slot(&in[root], 1, me);
    case LOFI_REDUCE_SCATTER:
        return reduce_slot(c, in, count, me);
    case LOFI_ALL_TO_ALL:
        return collect_slot(in, count, me);
    default: /* barrier and point to point move nothing here */
        return empty();
    }
}

/* ---- the verdict, from the table ------------------------------------------------------------- */

enum verdict { REAL, LOCAL, NOTHING, IMPLICIT, REFUSED };

static enum verdict expected_verdict(const struct world_case *c, int me)
{
    const lofi_call *call = &c->call;

    if (c->m == 1 || call->scope == LOFI_SCOPE_WORLD) return REAL;
    if (!c->is_even) return REFUSED;
    switch (call->collective) {
    case LOFI_ALL_REDUCE:
    case LOFI_ALL_GATHER:
    case LOFI_BARRIER:
    case LOFI_RECV_ANY:
        return LOCAL;
    case LOFI_REDUCE:
    case LOFI_GATHER:
        return node_of(c, call->root) == node_of(c, me) ? LOCAL : NOTHING;
    case LOFI_BROADCAST:
        if (call->issuer == LOFI_BY_WRAPPER) return LOCAL;
        return call->strict ? REFUSED : IMPLICIT;
    case LOFI_SCATTER:
        return call->strict ? REFUSED : IMPLICIT;
    case LOFI_REDUCE_SCATTER:
    case LOFI_ALL_TO_ALL:
        return call->issuer == LOFI_BY_BACKWARD ? LOCAL : REFUSED;
    case LOFI_SEND:
    case LOFI_RECV:
        return node_of(c, call->peer) == node_of(c, me) ? LOCAL : REFUSED;
    default:
        abort();
    }
}

static int is_reduction(lofi_collective collective)
{
    return collective == LOFI_ALL_REDUCE || collective == LOFI_REDUCE ||
           collective == LOFI_REDUCE_SCATTER;
}

/* Booleans can't be scaled: their plan must leave them alone, or make them all false. */
static int allows_bool(const struct world_case *c, const lofi_plan *plan)
{
    if (!c->call.is_bool || !is_reduction(c->call.collective)) return 1;
    return plan->adjust == LOFI_ADJUST_NONE || plan->adjust == LOFI_ADJUST_ZERO;
}

/* ---- the two results ------------------------------------------------------------------------- */

static struct data model_result(const struct world_case *c, int me)
{
    const struct data *in[MAX_RANKS] = {NULL};
    for (int i = 0; i < c->n; i++)
        in[i] = &c->input[image_in(c, i, node_of(c, me))];
    return run_collective(c, in, c->n, me, c->call.root);
}

static uint64_t adjust(const lofi_plan *plan, uint64_t value)
{
    uint64_t power = 1;
    switch (plan->adjust) {
    case LOFI_ADJUST_NONE:
        return value;
    case LOFI_ADJUST_SCALE:
        return value * (uint64_t)plan->factor;
    case LOFI_ADJUST_POWER:
        for (int64_t i = 0; i < plan->factor; i++)
            power *= value;
        return power;
    case LOFI_ADJUST_ZERO:
        return 0;
    }
    abort();
}

static int has_slots(lofi_collective collective)
{
    return collective == LOFI_REDUCE_SCATTER || collective == LOFI_ALL_TO_ALL ||
           collective == LOFI_SCATTER;
}

/* The input of the member at `place`, adjusted; of slots, those for the members of this node. */
static struct data local_input(const struct world_case *c, const lofi_group *group,
                               const lofi_plan *plan, int place)
{
    int node = lofi_group_node_of(group, lofi_group_rank(group));
    int slots = has_slots(c->call.collective) ? lofi_group_local_size(group) : 1;
    const struct data *input = &c->input[lofi_group_member(group, node, place)];
    struct data out = {slots * ELEMENTS, {0}, 1};

    for (int slot = 0; slot < slots; slot++) {
        int from =
            slots > 1 || has_slots(c->call.collective) ? lofi_group_member(group, node, slot) : 0;
        for (int e = 0; e < ELEMENTS; e++)
            out.value[slot * ELEMENTS + e] = adjust(plan, input->value[from * ELEMENTS + e]);
    }
    return out;
}

static struct data tile(const struct world_case *c, const lofi_group *group, struct data local)
{
    struct data out = {c->n * ELEMENTS, {0}, 1};
    if (local.count == 0) return local; /* not the root */
    for (int i = 0; i < c->n; i++)
        memcpy(out.value + i * ELEMENTS, local.value + lofi_group_place(group, i) * ELEMENTS,
               ELEMENTS * sizeof(uint64_t));
    return out;
}

static struct data local_result(const struct world_case *c, const lofi_group *group,
                                const lofi_plan *plan)
{
    struct data inputs[MAX_LOCAL];
    const struct data *in[MAX_LOCAL] = {NULL};
    int local_size = lofi_group_local_size(group);

    for (int place = 0; place < local_size; place++) {
        inputs[place] = local_input(c, group, plan, place);
        in[place] = &inputs[place];
    }
    int me = lofi_group_place(group, lofi_group_rank(group));
    struct data out = run_collective(c, in, local_size, me, plan->root);
    return plan->tile ? tile(c, group, out) : out;
}

/* a/b == c/d in integers modulo 2^64, and these are small */
static int is_equal(const struct data *a, const struct data *b)
{
    if (a->count != b->count) return 0;
    for (int i = 0; i < a->count; i++)
        if (a->value[i] * b->under != b->value[i] * a->under) return 0;
    return 1;
}

/* The slots for members of other nodes, filled with something else. */
static void overwrite_foreign_slots(struct world_case *c, int me)
{
    if (c->call.collective != LOFI_REDUCE_SCATTER && c->call.collective != LOFI_ALL_TO_ALL) return;
    for (int i = 0; i < c->n; i++)
        for (int slot = 0; slot < c->n; slot++)
            if (node_of(c, slot) != node_of(c, me))
                for (int e = 0; e < ELEMENTS; e++)
                    c->input[i].value[slot * ELEMENTS + e] = UINT64_C(0xdeadbeef);
}

static int check_peer(const struct world_case *c, const lofi_group *group, const lofi_plan *plan)
{
    int node = lofi_group_node_of(group, lofi_group_rank(group));
    if (c->call.collective != LOFI_SEND && c->call.collective != LOFI_RECV) return plan->peer == -1;
    return lofi_group_member(group, node, plan->peer) == c->call.peer;
}

static int check_plan(const struct world_case *c, const lofi_group *group, const lofi_plan *plan,
                      int me)
{
    struct world_case changed = *c;
    struct data model = model_result(c, me);

    overwrite_foreign_slots(&changed, me);
    struct data mine = local_result(&changed, group, plan);
    return EXPECT(allows_bool(c, plan)) && EXPECT(check_peer(c, group, plan)) &&
           EXPECT(is_equal(&model, &mine));
}

static int check_member(const struct world_case *c, int me)
{
    lofi_group *group = NULL;
    lofi_plan plan;
    enum verdict expected = expected_verdict(c, me);
    int ok;

    ASSERT(lofi_group_create(topologies[c->nodes][c->local][c->ranks[me]], c->ranks, c->n,
                             &group) == LOFI_OK);
    lofi_status st = lofi_mirror_plan(group, &c->call, &plan);
    verdicts[expected]++;
    if (expected == REFUSED)
        ok = EXPECT(st == LOFI_UNSUPPORTED);
    else
        ok = EXPECT(st == LOFI_OK) && EXPECT((int)plan.action == (int)expected);
    if (ok && expected == LOCAL)
        ok = check_plan(c, group, &plan, me);
    else if (ok && expected != REFUSED) /* nothing to execute here: the call goes on as issued */
        ok = EXPECT(plan.adjust == LOFI_ADJUST_NONE && plan.factor == 1 && plan.tile == 0);
    lofi_group_destroy(group);
    return ok;
}

/* ---- random cases ---------------------------------------------------------------------------- */

static void shuffle(uint64_t *seed, int *list, int count)
{
    for (int i = count - 1; i > 0; i--) {
        int j = test_below(seed, i + 1), held = list[i];
        list[i] = list[j];
        list[j] = held;
    }
}

/* `count` different numbers below `bound`. */
static void pick(uint64_t *seed, int *list, int count, int bound)
{
    int all[MAX_RANKS];
    for (int i = 0; i < bound; i++)
        all[i] = i;
    shuffle(seed, all, bound);
    memcpy(list, all, (size_t)count * sizeof *list);
}

/* Some nodes, as many ranks in each: the same ones (as HSDP has them) or any. */
static void pick_even(uint64_t *seed, struct world_case *c, int nodes, int is_strided)
{
    int node[MAX_NODES], local[MAX_LOCAL], share = 1 + test_below(seed, c->local);

    pick(seed, node, nodes, c->nodes);
    pick(seed, local, share, c->local);
    for (int i = 0; i < nodes; i++) {
        if (!is_strided) pick(seed, local, share, c->local);
        for (int j = 0; j < share; j++)
            c->ranks[c->n++] = node[i] * c->local + local[j];
    }
}

static int by_value(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void pick_group(uint64_t *seed, struct world_case *c)
{
    int kind = test_below(seed, 8), world = c->nodes * c->local;

    c->n = 0;
    if (kind == 0) { /* inside one node */
        pick_even(seed, c, 1, 0);
    } else if (kind == 1) { /* anything, mostly uneven */
        c->n = 1 + test_below(seed, world);
        pick(seed, c->ranks, c->n, world);
    } else if (kind == 2) { /* the whole world */
        for (; c->n < world; c->n++)
            c->ranks[c->n] = c->n;
    } else {
        pick_even(seed, c, 1 + test_below(seed, c->nodes), kind < 5);
    }
    if (test_below(seed, 2))
        qsort(c->ranks, (size_t)c->n, sizeof c->ranks[0], by_value);
    else
        shuffle(seed, c->ranks, c->n);
    count_nodes(c);
}

static void pick_call(uint64_t *seed, struct world_case *c)
{
    c->call = (lofi_call)LOFI_CALL_INIT;
    c->call.collective = (lofi_collective)test_below(seed, LOFI_COLLECTIVE_COUNT);
    c->call.op = (lofi_op)test_below(seed, LOFI_OP_COUNT);
    c->call.root = test_below(seed, c->n);
    c->call.peer = test_below(seed, c->n);
    c->call.issuer = (lofi_issuer)test_below(seed, LOFI_BY_BACKWARD + 1);
    c->call.scope = test_below(seed, 8) ? LOFI_SCOPE_NODE : LOFI_SCOPE_WORLD;
    c->call.strict = test_below(seed, 3) == 0;
    c->call.is_bool = test_below(seed, 4) == 0 && c->call.op != LOFI_AVG;
    c->premultiplier = c->call.is_bool ? 1 : 1 + (uint64_t)test_below(seed, 5);
    if (!is_reduction(c->call.collective)) c->call.op = (lofi_op)0;
}

static void pick_data(uint64_t *seed, struct world_case *c)
{
    int count = has_slots(c->call.collective) ? c->n * ELEMENTS : ELEMENTS;
    for (int i = 0; i < c->n; i++) {
        c->input[i].count = count;
        c->input[i].under = 1;
        for (int e = 0; e < count; e++)
            c->input[i].value[e] = test_random(seed) % (c->call.is_bool ? 2 : 1000);
    }
}

static int run_case(uint64_t *seed)
{
    static struct world_case c;
    int ok = 1;

    c.nodes = 1 + test_below(seed, MAX_NODES);
    c.local = 1 + test_below(seed, MAX_LOCAL);
    pick_group(seed, &c);
    pick_call(seed, &c);
    pick_data(seed, &c);
    for (int me = 0; me < c.n && ok; me++)
        ok = check_member(&c, me);
    if (!ok && test_failures <= 20) {
        fprintf(stderr, "  %s %s in %d nodes of %d, root %d, peer %d, bool %d, issuer %d, group",
                lofi_collective_name(c.call.collective), lofi_op_name(c.call.op), c.nodes, c.local,
                c.call.root, c.call.peer, c.call.is_bool, (int)c.call.issuer);
        for (int i = 0; i < c.n; i++)
            fprintf(stderr, " %d", c.ranks[i]);
        fprintf(stderr, "\n");
    }
    return ok;
}

static void make_topologies(void)
{
    for (int nodes = 1; nodes <= MAX_NODES; nodes++)
        for (int local = 1; local <= MAX_LOCAL; local++)
            for (int rank = 0; rank < nodes * local; rank++)
                topologies[nodes][local][rank] = world_topology(rank, nodes * local, local);
}

static void free_topologies(void)
{
    for (int nodes = 1; nodes <= MAX_NODES; nodes++)
        for (int local = 1; local <= MAX_LOCAL; local++)
            for (int rank = 0; rank < nodes * local; rank++)
                lofi_topology_destroy(topologies[nodes][local][rank]);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20221108;
    long cases = argc > 2 ? strtol(argv[2], NULL, 0) : 40000, failed = 0;

    printf("seed %llu, %ld cases\n", (unsigned long long)seed, cases);
    make_topologies();
    for (long i = 0; i < cases; i++)
        failed += !run_case(&seed);
    free_topologies();
    printf("plans: %lu real, %lu local, %lu nothing, %lu implicit, %lu refused; %ld cases failed\n",
           verdicts[REAL], verdicts[LOCAL], verdicts[NOTHING], verdicts[IMPLICIT],
           verdicts[REFUSED], failed);
    for (int i = 0; i < 5; i++)
        EXPECT(cases < 1000 || verdicts[i] > 100); /* the generator reaches all of them */
    return test_end();
}
