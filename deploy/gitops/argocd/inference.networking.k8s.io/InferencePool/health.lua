-- Health of an InferencePool for Argo CD, from any gateway's status. A pool has one
-- parent for each Gateway through which a route reaches it; the two conditions that
-- count are Accepted and ResolvedRefs, both good when True. A condition about an older
-- generation says nothing of the present pool.

local function parentName(parent)
  local ref = parent.parentRef or {}
  return (ref.kind or "Gateway") .. " " .. (ref.namespace and (ref.namespace .. "/") or "") .. (ref.name or "?")
end

if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "InferencePool is being deleted" }
end

local parents = (obj.status or {}).parents or {}
local waiting, gateways = nil, 0

for _, parent in ipairs(parents) do
  -- Status "default" is what releases before v1 wrote into pools that nobody uses.
  if not (parent.parentRef ~= nil and parent.parentRef.kind == "Status") then
    gateways = gateways + 1
    local decided = {}
    for _, condition in ipairs(parent.conditions or {}) do
      local current = condition.observedGeneration == nil or obj.metadata.generation == nil
        or condition.observedGeneration >= obj.metadata.generation
      if current and (condition.type == "Accepted" or condition.type == "ResolvedRefs") then
        if condition.status == "False" then
          return {
            status = "Degraded",
            message = parentName(parent) .. ": " .. condition.type .. "=False, " .. (condition.reason or "no reason")
              .. ": " .. (condition.message or ""),
          }
        end
        decided[condition.type] = condition.status == "True"
      end
    end
    if not decided.Accepted or not decided.ResolvedRefs then
      waiting = waiting or parentName(parent)
    end
  end
end

if waiting ~= nil then
  return { status = "Progressing", message = "Waiting for " .. waiting }
end
if gateways == 0 then
  -- Right for a pool that is applied before its routes: Progressing would stop the sync
  -- wave that is to bring them.
  return { status = "Healthy", message = "No Gateway uses the InferencePool" }
end
return { status = "Healthy", message = "Accepted by " .. gateways .. (gateways == 1 and " Gateway" or " Gateways") }
