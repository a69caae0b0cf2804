// What test files import from vitest, in a worker, where vitest itself does not run.
import { JestAsymmetricMatchers, JestChaiExpect, JestExtend } from "@vitest/expect";
import * as chai from "chai";

for (const plugin of [JestExtend, JestChaiExpect, JestAsymmetricMatchers]) chai.use(plugin);

export const expect = chai.expect;
export const inject = (): "worker" => "worker";
export { afterAll, afterEach, beforeAll, beforeEach, describe, it } from "@vitest/runner";
