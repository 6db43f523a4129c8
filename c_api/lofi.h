/* SPDX-License-Identifier: MIT */
/*
 * liblofi: what decides and what computes in lo-fi training.
 *
 * lo-fi (Wortsman et al. 2022, arXiv 2210.11948) fine-tunes on K disjoint nodes of L ranks.
 * Gradients are all-reduced inside a node only, nothing crosses nodes while training, and at the
 * end the nodes' weights are averaged. While training, each node behaves as if every other node
 * were its mirror image: a collective on a group of n = K * l ranks returns, inside the node, what
 * the real collective would return if every rank held the data of its image in this node.
 *
 * This header is the specification: what is not in it is not API. The library knows neither
 * Python nor torch and opens no connection: between machines bytes move through functions of the
 * caller, inside one through shared memory, between GPUs through NCCL. It starts a thread for a
 * communicator on which a collective is posted, threads for the time of lofi_average_files, and no
 * other.
 *
 * It is one header, in parts by subject. A part may also be included by itself.
 */
#ifndef LOFI_H
#define LOFI_H

#include "lofi/average.h"    /* the average over nodes */
#include "lofi/base.h"       /* conventions, versions, statuses, errors, the log */
#include "lofi/collective.h" /* collectives and their operations */
#include "lofi/comm.h"       /* communicators */
#include "lofi/exchange.h"   /* its exchange: a plan, and who carries it out */
#include "lofi/files.h"      /* checkpoints in files, and averages of them */
#include "lofi/mirror.h"     /* what runs while nodes train apart; phases, scopes, statistics */
#include "lofi/nodes.h"      /* which ranks make a node; where a process group lies among them */
#include "lofi/round.h"      /* who is in an average; meetings of any kind */
#include "lofi/soup.h"       /* what to average, chosen by scores */
#include "lofi/values.h"     /* types of elements, means, fingerprints */

#endif /* LOFI_H */
